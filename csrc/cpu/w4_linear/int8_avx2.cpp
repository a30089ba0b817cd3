// AVX2: products of bytes are summed in pairs to 16 bits, those of two blocks in the same 16 bits (eight
// products of 15 · 127 fit), and in pairs to 32.
#if defined(__x86_64__)
#include <cstdint>
#include <cstring>
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>

#include "cpu/w4_linear/int8_engine.h"
#include "cpu/w4_linear/x86.h"

namespace tarq {
namespace {

struct Avx2Int8 : Avx2Words {
  using Bytes = __m256i;
  using Lanes = __m256i;
  using Sum = __m256;
  static constexpr int int8_rows = 4, joined = 2;

  static Words low(Words words) { return _mm256_and_si256(words, _mm256_set1_epi8(15)); }
  static Words high(Words words) { return low(_mm256_srli_epi16(words, 4)); }
  static Words ones() { return _mm256_set1_epi8(1); }
  static Words eights() { return _mm256_set1_epi8(8); }
  static Bytes load_bytes(const int8_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static Lanes no_sums() { return _mm256_setzero_si256(); }
  static Lanes load_lanes(const int32_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static void store_negative(int32_t* to, Lanes sums) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_sub_epi32(_mm256_setzero_si256(), sums));
  }
  static Lanes widen(Lanes sum, __m256i pairs) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static Lanes dot(Lanes sum, Words codes, Bytes x) { return widen(sum, _mm256_maddubs_epi16(codes, x)); }
  template <int count>
  static Lanes dot_joined(Lanes sum, const Words* low, const Words* high, const int8_t* x) {
    static_assert(count <= 4, "a pair of products is at most 3810, and 16 bits hold eight of them");
    __m256i pairs[count];
    for (int b = 0; b < count; ++b, x += 64)
      pairs[b] = _mm256_add_epi16(_mm256_maddubs_epi16(low[b], load_bytes(x)),
                                  _mm256_maddubs_epi16(high[b], load_bytes(x + 32)));
    for (int b = 1; b < count; ++b) pairs[0] = _mm256_add_epi16(pairs[0], pairs[b]);
    return widen(sum, pairs[0]);
  }
  using X86::to_float;
  static Sum to_float(Lanes sums) { return _mm256_cvtepi32_ps(sums); }
  static Sum zero() { return _mm256_setzero_ps(); }
  static Sum multiply_add(Sum sum, Sum a, Sum b) { return _mm256_fmadd_ps(a, b, sum); }
  static Sum multiply(Sum a, Sum b) { return _mm256_mul_ps(a, b); }
  static Four reduce(const Sum* sums) { return sum_each(sums); }
};

}  // namespace

extern const W4Int8Kernel kW4Int8Avx2;
const W4Int8Kernel kW4Int8Avx2 = make_int8_kernel<Avx2Int8>("avx2");

}  // namespace tarq
#endif
