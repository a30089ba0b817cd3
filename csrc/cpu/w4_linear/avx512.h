// What the two AVX-512 kernels share. Included after their `#pragma GCC target` and <immintrin.h>.
#pragma once

#include "cpu/w4_linear/x86.h"

namespace tarq {
namespace {

/// In each 128-bit lane a0 + a2, b0 + b2, a1 + a3, b1 + b3.
inline __m512 add_pairs(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
}

/// Four vectors to their four sums: first to a vector of four sums in each of four lanes.
inline __m128 sum_each(const __m512* v) {
  const __m512 low = add_pairs(v[0], v[1]), high = add_pairs(v[2], v[3]);
  const __m512 sums = _mm512_add_ps(_mm512_shuffle_ps(low, high, 0x44), _mm512_shuffle_ps(low, high, 0xee));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps(sums, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

/// The 16 codes, as a table.
inline __m512 code_table() { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

/// The words and sums of a kernel description.
struct Avx512Words : X86 {
  using Words = __m512i;
  using Sum = __m512;
  static constexpr int lanes = 16;

  using Window = __mmask16;
  static Window window(int64_t words) { return words >= lanes ? 0xffff : __mmask16((1u << words) - 1); }
  static Words load_words(const uint32_t* from, Window window) {
    return _mm512_maskz_loadu_epi32(window, from);
  }
  static Sum zero() { return _mm512_setzero_ps(); }
  static Sum add(Sum a, Sum b) { return _mm512_add_ps(a, b); }
  static Sum multiply_add(Sum sum, Sum part, Sum scale) { return _mm512_fmadd_ps(part, scale, sum); }
  /// What belongs to the groups of a block, each in the lanes of its words.
  template <int parts>
  static Sum spread(const float* scales) {
    if constexpr (parts == lanes) return _mm512_loadu_ps(scales);
    Sum v = _mm512_set1_ps(scales[0]);
    for (int p = 1; p < parts; ++p)
      v = _mm512_mask_broadcastss_ps(v, __mmask16(0xffffu << (16 / parts * p)), _mm_load_ss(scales + p));
    return v;
  }
  static Four reduce(const Sum* sums) { return sum_each(sums); }

  // One output a lane.
  static void load_columns(const uint32_t* const* rows, int64_t w, int64_t there, Words* out) {
    // Squares of four in each 128-bit lane, then the lanes.
    __m512i v[16];
    for (int i = 0; i < 16; i += 4) {
      __m512i a[4];
      for (int r = 0; r < 4; ++r) a[r] = load_words(rows[i + r] + w, window(there));
      const __m512i low = _mm512_unpacklo_epi32(a[0], a[1]), high = _mm512_unpackhi_epi32(a[0], a[1]);
      const __m512i low2 = _mm512_unpacklo_epi32(a[2], a[3]), high2 = _mm512_unpackhi_epi32(a[2], a[3]);
      v[i] = _mm512_unpacklo_epi64(low, low2);
      v[i + 1] = _mm512_unpackhi_epi64(low, low2);
      v[i + 2] = _mm512_unpacklo_epi64(high, high2);
      v[i + 3] = _mm512_unpackhi_epi64(high, high2);
    }
    for (int i = 0; i < 4; ++i) {  // words i, 4 + i, 8 + i, 12 + i of four rows each
      const __m512i a = _mm512_shuffle_i32x4(v[i], v[4 + i], 0x88),
                    b = _mm512_shuffle_i32x4(v[i], v[4 + i], 0xdd);
      const __m512i c = _mm512_shuffle_i32x4(v[8 + i], v[12 + i], 0x88),
                    d = _mm512_shuffle_i32x4(v[8 + i], v[12 + i], 0xdd);
      out[i] = _mm512_shuffle_i32x4(a, c, 0x88);
      out[8 + i] = _mm512_shuffle_i32x4(a, c, 0xdd);
      out[4 + i] = _mm512_shuffle_i32x4(b, d, 0x88);
      out[12 + i] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
  }
  static Sum load_sums(const float* from) { return _mm512_loadu_ps(from); }
  static void store_sums(float* to, Sum v) { _mm512_storeu_ps(to, v); }
  static void write_sums(void* to, Float type, int64_t i, Sum v) {
    if (type == Float::f32) return store_sums(static_cast<float*>(to) + i, v);
    __m256i half;
    if (type == Float::f16) {
      half = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    } else {  // bf16, to nearest even; NaN stays NaN
      const __m512i bits = _mm512_castps_si512(v);
      const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
      const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
      const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
      const __m512i rounded = _mm512_mask_mov_epi32(up, nan, _mm512_set1_epi32(0x7fc00000));
      half = _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(static_cast<uint16_t*>(to) + i), half);
  }
  static Sum multiply(Sum a, Sum b) { return _mm512_mul_ps(a, b); }
  static Sum subtract(Sum a, Sum b) { return _mm512_sub_ps(a, b); }
};

}  // namespace
}  // namespace tarq
