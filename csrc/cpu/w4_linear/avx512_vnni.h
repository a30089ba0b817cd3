// What the kernels with int8 products share. Included after their `#pragma GCC target` and <immintrin.h>.
#pragma once

#include "cpu/w4_linear/avx512.h"
#include "cpu/w4_linear/int8_engine.h"

namespace tarq {
namespace {

struct Avx512Vnni : Avx512Words {
  using Bytes = __m512i;
  using Lanes = __m512i;
  static constexpr int int8_rows = 4, joined = 1;

  static Words low(Words words) { return _mm512_and_si512(words, _mm512_set1_epi8(15)); }
  static Words high(Words words) { return low(_mm512_srli_epi16(words, 4)); }
  static Words ones() { return _mm512_set1_epi8(1); }
  static Words eights() { return _mm512_set1_epi8(8); }
  static Bytes load_bytes(const int8_t* from) { return _mm512_loadu_si512(from); }
  static Lanes no_sums() { return _mm512_setzero_si512(); }
  static Lanes load_lanes(const int32_t* from) { return _mm512_loadu_si512(from); }
  static void store_negative(int32_t* to, Lanes sums) {
    _mm512_storeu_si512(to, _mm512_sub_epi32(_mm512_setzero_si512(), sums));
  }
  static Lanes dot(Lanes sum, Words codes, Bytes x) { return _mm512_dpbusd_epi32(sum, codes, x); }
  using X86::to_float;
  static Sum to_float(Lanes sums) { return _mm512_cvtepi32_ps(sums); }
};

}  // namespace
}  // namespace tarq
