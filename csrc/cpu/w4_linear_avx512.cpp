// AVX-512 (F, BW, VL, DQ), fp32 arithmetic: a 16-entry table is one register, and vpermps reads only the low
// four bits of every lane, so a step is a look-up, a multiply-add and a shift.
#if defined(__x86_64__)
#include <cstdint>
#include <cstring>
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
// GCC 12 takes the don't-care operand of its own intrinsics for an uninitialised variable.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "w4_linear_avx512.h"
#include "w4_linear_body.h"

namespace tarq {
namespace {

struct Avx512 {
  using Element = float;
  using Words = __m512i;
  using Vector = __m512;
  using Sum = __m512;
  static constexpr int lanes = 16, steps = 8, width = 16, micro_rows = 6;

  static int source(int e) { return 8 * (e % 16) + e / 16; }
  static Words load_words(const uint32_t* from) { return _mm512_loadu_si512(from); }
  static Words load_words_part(const uint32_t* from, int count) {
    return _mm512_maskz_loadu_epi32(__mmask16((1u << count) - 1), from);
  }
  static Words shift(Words words) { return _mm512_srli_epi32(words, 4); }
  template <int parts>
  static Vector lookup(const float* table, Words words) {
    Vector v = _mm512_permutexvar_ps(words, _mm512_loadu_ps(table));
    for (int p = 1; p < parts; ++p) {
      const __mmask16 upper = __mmask16(0xffffu << (16 / parts * p));
      v = _mm512_mask_permutexvar_ps(v, upper, words, _mm512_loadu_ps(table + 16 * p));
    }
    return v;
  }
  static Vector load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, Vector v) { _mm512_storeu_ps(to, v); }
  static Sum zero() { return _mm512_setzero_ps(); }
  static Sum dot(Sum sum, Vector w, Vector x) { return _mm512_fmadd_ps(w, x, sum); }
  static void reduce(const Sum* sums, float* out) { reduce_tile(sums, out); }
  static void fill_table(float* table, const void* scales, Float type, int64_t i, float zero) {
    _mm512_storeu_ps(table, weight_table(scales, type, i, zero));
  }
  static void pack_block(const void* x, Float type, int64_t first, float* to) {
    for (int e = 0; e < 128; ++e) to[e] = read(x, type, first + source(e));
  }
};

}  // namespace

const W4Kernel kW4Avx512 = make_kernel<Avx512>("avx512", Float::f32, 4, 1 << 30);

}  // namespace tarq
#endif
