// Shared by the vector kernels. Included after their `#pragma GCC target` and <immintrin.h>.
#pragma once

#include "cpu/w4_linear/layout.h"

namespace tarq {
namespace {

inline __m256 load_float8(const void* from, Float type, int64_t i) {
  if (type == Float::f32) return _mm256_loadu_ps(static_cast<const float*>(from) + i);
  const __m128i half =
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(from) + i));
  if (type == Float::f16) return _mm256_cvtph_ps(half);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/// `count` values from element `first` on, as fp32.
inline void convert_to_float(const void* from, Float type, int64_t first, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) _mm256_storeu_ps(to + i, load_float8(from, type, first + i));
  for (; i < count; ++i) to[i] = read(from, type, first + i);
}

/// Four vectors to their four sums.
inline __m128 sum_each(const __m256* v) {
  const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
  return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
}

inline void write_float4(void* to, Float type, int64_t i, __m128 values) {
  if (type == Float::f32) return _mm_storeu_ps(static_cast<float*>(to) + i, values);
  __m128i half;
  if (type == Float::f16) {
    half = _mm_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  } else {  // bf16, to nearest even; NaN stays NaN
    const __m128i bits = _mm_castps_si128(values);
    const __m128i odd = _mm_and_si128(_mm_srli_epi32(bits, 16), _mm_set1_epi32(1));
    const __m128i up = _mm_add_epi32(_mm_add_epi32(bits, _mm_set1_epi32(0x7fff)), odd);
    const __m128 nan = _mm_cmpunord_ps(values, values);
    const __m128 rounded =
        _mm_blendv_ps(_mm_castsi128_ps(up), _mm_castsi128_ps(_mm_set1_epi32(0x7fc00000)), nan);
    const __m128i top = _mm_srli_epi32(_mm_castps_si128(rounded), 16);
    half = _mm_packus_epi32(top, top);
  }
  _mm_storel_epi64(reinterpret_cast<__m128i*>(static_cast<uint16_t*>(to) + i), half);
}

/// Eight vectors of eight to their transpose.
inline void transpose(__m256* v) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
    a[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
    v[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
  }
}

/// Keeps the compiler from reading a vector from memory again for each of its uses.
template <class Vector>
inline Vector in_register(Vector v) {
  __asm__("" : "+v"(v));
  return v;
}

/// The functions of a kernel description that do not depend on the vectors' width.
struct X86 {
  using Four = __m128;
  static Four load_four(const float* from) { return _mm_loadu_ps(from); }
  static Four add_four(Four a, Four b) { return _mm_add_ps(a, b); }
  static void write_four(void* to, Float type, int64_t i, Four values) { write_float4(to, type, i, values); }
  static void to_float(const void* from, Float type, int64_t first, int64_t count, float* to) {
    convert_to_float(from, type, first, count, to);
  }
  template <class Vector>
  static Vector kept_in_register(Vector v) {
    return in_register(v);
  }
};

/// The word loads of the AVX2 kernels.
struct Avx2Words : X86 {
  using Words = __m256i;
  using Window = int;
  static constexpr int lanes = 8;

  static Window window(int64_t words) { return words < lanes ? int(words) : lanes; }
  static Words load_words(const uint32_t* from, Window window) {
    if (__builtin_expect(window == lanes, 1))
      return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_epi32(reinterpret_cast<const int*>(from),
                                 _mm256_cmpgt_epi32(_mm256_set1_epi32(window), lane));
  }
  /// What belongs to the groups of a block, each in the lanes of its words.
  template <int parts>
  static __m256 spread(const float* of) {
    if constexpr (parts == 1) return _mm256_broadcast_ss(of);
    if constexpr (parts == lanes) return _mm256_loadu_ps(of);
    if constexpr (parts == 2) return _mm256_set_m128(_mm_broadcast_ss(of + 1), _mm_broadcast_ss(of));
    return _mm256_setr_ps(of[0], of[0], of[1], of[1], of[2], of[2], of[3], of[3]);
  }
};

}  // namespace
}  // namespace tarq
