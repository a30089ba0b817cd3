// AVX2 with FMA: eight columns a vector, four rows by three panels, twelve sums.
#if defined(__x86_64__)
#include <cstdint>
#include <cstring>
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>

#include "cpu/gram/engine.h"

namespace tarq {
namespace {

struct Avx2 {
  using Vector = __m256;
  static constexpr int64_t panel = 8, depth = 256;

  static Vector zero() { return _mm256_setzero_ps(); }
  static Vector load(const float* from) { return _mm256_loadu_ps(from); }
  static Vector get(const float* from) { return _mm256_loadu_ps(from); }
  static void put(float* to, Vector v) { _mm256_storeu_ps(to, v); }
  static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  static Vector splat(float value) { return _mm256_set1_ps(value); }
  static Vector dot(Vector sum, Vector y, Vector x) { return _mm256_fmadd_ps(y, x, sum); }
  static Vector multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
  static Vector subtract(Vector a, Vector b) { return _mm256_sub_ps(a, b); }
  static Vector from_half(const uint16_t* from, Float type) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    if (type == Float::f16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
};

}  // namespace

extern const GramKernel kGramAvx2;
const GramKernel kGramAvx2 = make_gram_kernel<FloatSteps<Avx2>>("avx2");

}  // namespace tarq
#endif
