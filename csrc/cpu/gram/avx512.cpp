// AVX-512 in fp32: sixteen columns a vector, eight rows by three panels, 24 of the 32 registers hold sums.
#if defined(__x86_64__)
#include <cstdint>
#include <cstring>
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
// GCC 12 takes the don't-care operand of its own intrinsics for an uninitialised variable.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "cpu/gram/avx512.h"
#include "cpu/gram/engine.h"

namespace tarq {
namespace {

struct Avx512 : Avx512Sums {
  static constexpr int64_t depth = 192;

  static Vector load(const float* from) { return _mm512_loadu_ps(from); }
  static Vector splat(float value) { return _mm512_set1_ps(value); }
  static Vector dot(Vector sum, Vector y, Vector x) { return _mm512_fmadd_ps(y, x, sum); }
  static Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
  static Vector subtract(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
  static Vector from_half(const uint16_t* from, Float type) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    if (type == Float::f16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
};

}  // namespace

extern const GramKernel kGramAvx512;
const GramKernel kGramAvx512 = make_gram_kernel<FloatSteps<Avx512>>("avx512");

}  // namespace tarq
#endif
