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

struct Avx512Bf16 : Avx512Words {
  using Element = uint16_t;
  using Vector = __m512i;
  using Table = __m512i;
  static constexpr int steps = 4, width = 32, fused_rows = 2;
  // Codes minus zero point are exact in bf16: scaling their sums is both cheaper than scaling a table and
  // exact.
  static constexpr bool scale_after = true;

  // A 16-bit half of a word holds four codes; lane 2i + h of step j is code 4h + j of word i.
  static int source(int e) { return 8 * (e % 32 / 2) + 4 * (e % 2) + e / 32; }
  static Words shift(Words words) { return _mm512_srli_epi16(words, 4); }
  static Table twice(__m512 table) {
    const __m256i half = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(table));
    return _mm512_broadcast_i64x4(half);
  }
  static Table weight_table(float scale, float zero) { return twice(weight_table16(scale, zero)); }
  static Table code_table(float zero) { return weight_table(1.0f, zero); }
  template <int parts>
  static Vector lookup(const Table* tables, Words words) {
    Vector v = _mm512_permutexvar_epi16(words, tables[0]);
    for (int p = 1; p < parts; ++p)
      v = _mm512_mask_permutexvar_epi16(v, __mmask32(0xffffffffu << (32 / parts * p)), words, tables[p]);
    return v;
  }
  static Vector weights(Words words, Sum scale, Sum zero) {
    const auto rounded = [&](Words codes) {
      return _mm512_cvtepu16_epi32(
          reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(word_weights(codes, scale, zero))));
    };
    return _mm512_or_si512(rounded(words), _mm512_slli_epi32(rounded(_mm512_srli_epi32(words, 16)), 16));
  }
  static Vector load(const uint16_t* from) { return _mm512_loadu_si512(from); }
  static void store(uint16_t* to, Vector v) { _mm512_storeu_si512(to, v); }
  static Sum dot(Sum sum, Vector w, Vector x) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
  }
  static void pack_block(const void* x, Float, int64_t first, uint16_t* to) {
    const uint16_t* from = static_cast<const uint16_t*>(x) + first;
    const Vector a = load(from), b = load(from + 32), c = load(from + 64), d = load(from + 96);
    // Elements 8i + 4h of words i = 0 … 7, which lie in two vectors; the same picks serve words 8 … 15.
    alignas(64) static constexpr uint16_t kPick[16] = {0,  4,  8,  12, 16, 20, 24, 28,
                                                       32, 36, 40, 44, 48, 52, 56, 60};
    Vector pick = _mm512_broadcast_i64x4(_mm256_load_si256(reinterpret_cast<const __m256i*>(kPick)));
    for (int j = 0; j < 4; ++j, pick = _mm512_add_epi16(pick, _mm512_set1_epi16(1))) {
      const Vector low = _mm512_permutex2var_epi16(a, pick, b), high = _mm512_permutex2var_epi16(c, pick, d);
      store(to + 32 * j, _mm512_mask_mov_epi16(low, 0xffff0000, high));
    }
  }
};

}  // namespace

const W4Kernel kW4Avx512Bf16 = make_kernel<Avx512Bf16>("avx512_bf16", Float::bf16, 208);

}  // namespace tarq
#endif
