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
  using Step = float;
  using Vector = __m256;
  static constexpr bool pairs = false;
  static constexpr int64_t panel = 8, depth = 256;

  static Vector zero() { return _mm256_setzero_ps(); }
  static Vector load(const float* from) { return _mm256_loadu_ps(from); }
  static Vector get(const float* from) { return _mm256_loadu_ps(from); }
  static void put(float* to, Vector v) { _mm256_storeu_ps(to, v); }
  static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  static Vector splat(float value) { return _mm256_set1_ps(value); }
  static Vector dot(Vector sum, Vector y, Vector x) { return _mm256_fmadd_ps(y, x, sum); }
  static void pack_step(const GramRows& rows, int64_t row, int64_t, int64_t column, float* to) {
    const int64_t at = row * rows.stride + column;
    Vector v;
    if (rows.type == Float::f32) {
      v = load(static_cast<const float*>(rows.data) + at);
    } else {
      const __m128i half =
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(rows.data) + at));
      v = rows.type == Float::f16 ? _mm256_cvtph_ps(half)
                                  : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    }
    put(to, rows.weight ? _mm256_mul_ps(v, splat(rows.weight[row])) : v);
  }
};

}  // namespace

extern const GramKernel kGramAvx2;
const GramKernel kGramAvx2 = make_gram_kernel<Avx2>("avx2");

}  // namespace tarq
#endif
