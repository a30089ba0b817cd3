// AVX-512 with VNNI: vpdpbusd multiplies 64 pairs of bytes and adds them, four a lane, to 32 bits.
#if defined(__x86_64__)
#include <cstdint>
#include <cstring>
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
// GCC 12 takes the don't-care operand of its own intrinsics for an uninitialised variable.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "w4_linear_avx512.h"
#include "w4_linear_int8_body.h"

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
  static Lanes load_sums(const int32_t* from) { return _mm512_loadu_si512(from); }
  static void store_negative(int32_t* to, Lanes sums) {
    _mm512_storeu_si512(to, _mm512_sub_epi32(_mm512_setzero_si512(), sums));
  }
  static Lanes dot(Lanes sum, Words codes, Bytes x) { return _mm512_dpbusd_epi32(sum, codes, x); }
  using X86::to_float;
  static Sum to_float(Lanes sums) { return _mm512_cvtepi32_ps(sums); }
  static Sum multiply(Sum a, Sum b) { return _mm512_mul_ps(a, b); }
};

}  // namespace

extern const W4Int8Kernel kW4Int8Avx512Vnni;
const W4Int8Kernel kW4Int8Avx512Vnni = make_int8_kernel<Avx512Vnni>("avx512_vnni");

}  // namespace tarq
#endif
