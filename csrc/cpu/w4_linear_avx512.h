// What the two AVX-512 kernels share. Included after their `#pragma GCC target` and <immintrin.h>.
#pragma once

#include "w4_linear_body.h"

namespace tarq {
namespace {

/// Four vectors to their four sums.
inline void reduce_tile(const __m512* sums, float* out) {
  __m256 half[4];
  for (int r = 0; r < 4; ++r)
    half[r] = _mm256_add_ps(_mm512_castps512_ps256(sums[r]), _mm512_extractf32x8_ps(sums[r], 1));
  const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(half[0], half[1]), _mm256_hadd_ps(half[2], half[3]));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
}

inline __m512 round_bf16(__m512 v) {  // to nearest even; scales are finite, so NaN needs no care
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  return _mm512_castsi512_ps(_mm512_and_si512(sum, _mm512_set1_epi32(int(0xffff0000))));
}

/// (code − zero) · scale for the 16 codes, rounded to the scale's type.
inline __m512 weight_table(const void* scales, Float type, int64_t i, float zero) {
  const __m512 codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512 steps = _mm512_sub_ps(codes, _mm512_set1_ps(zero));
  if (type == Float::f32) return _mm512_mul_ps(steps, _mm512_set1_ps(static_cast<const float*>(scales)[i]));
  const uint16_t half = static_cast<const uint16_t*>(scales)[i];
  if (type == Float::bf16) return round_bf16(_mm512_mul_ps(steps, _mm512_set1_ps(bf16_to_float(half))));
  const __m512 product = _mm512_mul_ps(steps, _mm512_cvtph_ps(_mm256_set1_epi16(int16_t(half))));
  return _mm512_cvtph_ps(_mm512_cvtps_ph(product, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

}  // namespace
}  // namespace tarq
