// AVX-512 with BF16 for bf16 activations: vdpbf16ps multiplies 32 pairs and sums in fp32. vpermw reads the
// low five bits of a 16-bit lane, of which the fifth belongs to the next code: the 16-entry table is held
// twice.
#if defined(__x86_64__)
#include <cstdint>
#include <cstring>
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")
// GCC 12 takes the don't-care operand of its own intrinsics for an uninitialised variable.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "w4_linear_avx512.h"
#include "w4_linear_body.h"

namespace tarq {
namespace {

struct Avx512Bf16 {
  using Element = uint16_t;
  using Words = __m512i;
  using Vector = __m512i;
  using Sum = __m512;
  static constexpr int lanes = 16, steps = 4, width = 32, micro_rows = 6;

  // A 16-bit half of a word holds four codes; lane 2i + h of step j is code 4h + j of word i.
  static int source(int e) { return 8 * (e % 32 / 2) + 4 * (e % 2) + e / 32; }
  static Words load_words(const uint32_t* from) { return _mm512_loadu_si512(from); }
  static Words load_words_part(const uint32_t* from, int count) {
    return _mm512_maskz_loadu_epi32(__mmask16((1u << count) - 1), from);
  }
  static Words shift(Words words) { return _mm512_srli_epi16(words, 4); }
  static __m512i twice(const uint16_t* table) {
    return _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(table)));
  }
  template <int parts>
  static Vector lookup(const uint16_t* table, Words words) {
    Vector v = _mm512_permutexvar_epi16(words, twice(table));
    for (int p = 1; p < parts; ++p) {
      const __mmask32 upper = __mmask32(0xffffffffu << (32 / parts * p));
      v = _mm512_mask_permutexvar_epi16(v, upper, words, twice(table + 16 * p));
    }
    return v;
  }
  static Vector load(const uint16_t* from) { return _mm512_loadu_si512(from); }
  static void store(uint16_t* to, Vector v) { _mm512_storeu_si512(to, v); }
  static Sum zero() { return _mm512_setzero_ps(); }
  static Sum dot(Sum sum, Vector w, Vector x) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
  }
  static void reduce(const Sum* sums, float* out) { reduce_tile(sums, out); }
  static void fill_table(uint16_t* table, const void* scales, Float type, int64_t i, float zero) {
    const __m256bh half = _mm512_cvtneps_pbh(weight_table(scales, type, i, zero));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(table), reinterpret_cast<__m256i>(half));
  }
  static void pack_block(const void* x, Float, int64_t first, uint16_t* to) {
    const uint16_t* from = static_cast<const uint16_t*>(x) + first;
    for (int e = 0; e < 128; ++e) to[e] = from[source(e)];
  }
};

}  // namespace

const W4Kernel kW4Avx512Bf16 = make_kernel<Avx512Bf16>("avx512_bf16", Float::bf16, 4, 1 << 30);

}  // namespace tarq
#endif
