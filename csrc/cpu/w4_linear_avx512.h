// What the two AVX-512 kernels share. Included after their `#pragma GCC target` and <immintrin.h>.
#pragma once

#include "w4_linear_avx2.h"

namespace tarq {
namespace {

inline __m128 sum_each(const __m512* v) {
  __m256 half[kTile];
  for (int r = 0; r < kTile; ++r)
    half[r] = _mm256_add_ps(_mm512_castps512_ps256(v[r]), _mm512_extractf32x8_ps(v[r], 1));
  return sum_each(half);
}

/// (code − zero) · scale for the 16 codes.
inline __attribute__((always_inline)) __m512 weight_table16(float scale, float zero) {
  const __m512 codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_mul_ps(_mm512_sub_ps(codes, _mm512_set1_ps(zero)), _mm512_set1_ps(scale));
}

/// The weights of words' lowest codes, each word with a scale and a zero point of its own.
inline __attribute__((always_inline)) __m512 word_weights(__m512i words, __m512 scale, __m512 zero) {
  const __m512 codes = _mm512_cvtepi32_ps(_mm512_and_si512(words, _mm512_set1_epi32(15)));
  return _mm512_mul_ps(_mm512_sub_ps(codes, zero), scale);
}

/// The word loads and shifts of a kernel description.
struct Avx512Words : X86 {
  using Words = __m512i;
  using Sum = __m512;
  static constexpr int lanes = 16, micro_rows = 6;

  using Window = __mmask16;
  static Window window(int64_t words) { return words >= lanes ? 0xffff : __mmask16((1u << words) - 1); }
  static Words load_words(const uint32_t* from, Window window) {
    return _mm512_maskz_loadu_epi32(window, from);
  }
  static Sum zero() { return _mm512_setzero_ps(); }
  static Sum add(Sum a, Sum b) { return _mm512_add_ps(a, b); }
  static Sum multiply_add(Sum sum, Sum part, Sum scale) { return _mm512_fmadd_ps(part, scale, sum); }
  /// The scales of a block's groups, each in the lanes of its words.
  template <int parts>
  static Sum spread(const float* scales) {
    if constexpr (parts == lanes) return _mm512_loadu_ps(scales);
    Sum v = _mm512_set1_ps(scales[0]);
    for (int p = 1; p < parts; ++p)
      v = _mm512_mask_broadcastss_ps(v, __mmask16(0xffffu << (16 / parts * p)), _mm_load_ss(scales + p));
    return v;
  }
  static Four reduce(const Sum* sums) { return sum_each(sums); }
};

}  // namespace
}  // namespace tarq
