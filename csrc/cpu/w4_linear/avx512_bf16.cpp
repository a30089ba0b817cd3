// AVX-512 with BF16 for a few rows of bf16 activations: vdpbf16ps multiplies 32 pairs and sums in fp32.
// vpermw reads the low five bits of a 16-bit lane, of which the fifth belongs to the next code: the 16-entry
// table is held twice. Codes less their zero point are exact in bf16.
#if defined(__x86_64__)
#include <cstdint>
#include <cstring>
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")
// GCC 12 takes the don't-care operand of its own intrinsics for an uninitialised variable.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "cpu/w4_linear/avx512.h"
#include "cpu/w4_linear/engine.h"

namespace tarq {
namespace {

struct Avx512Bf16 : Avx512Words {
  using Element = uint16_t;
  using Vector = __m512i;
  static constexpr int steps = 4, width = 32, fused_rows = 2, together = 1;
  static constexpr bool defers_zeros = false, fused_by_word = false;

  // A 16-bit half of a word holds four codes; lane 2i + h of step j is code 4h + j of word i.
  static constexpr float unit(int) { return 1.0f; }
  static constexpr int weight_rows(int) { return 4; }

  struct Steps {};
  static Steps steps_in_memory() { return {}; }
  static Steps steps_in_registers() { return {}; }

  /// Tables of a block's groups, each for the lanes of its words.
  template <int parts>
  struct Centred {
    __m512i tables[parts];
    void read(const float* zeros) {
      for (int p = 0; p < parts; ++p) {
        __m512 codes = _mm512_sub_ps(code_table(), _mm512_set1_ps(zeros[p]));
        codes = _mm512_mul_ps(codes, _mm512_set1_ps(1 / kHeadroom));
        tables[p] = _mm512_broadcast_i64x4(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(codes)));
      }
    }
    // A 16-bit half of a word holds four codes; lane 2i + h of step j is code 4h + j of word i.
    Vector operator()(Words words, Steps, int j) const {
      words = _mm512_srli_epi16(words, 4 * j);
      Vector v = _mm512_permutexvar_epi16(words, tables[0]);
      for (int p = 1; p < parts; ++p)
        v = _mm512_mask_permutexvar_epi16(v, __mmask32(0xffffffffu << (32 / parts * p)), words, tables[p]);
      return v;
    }
  };

  static Vector load(const uint16_t* from) { return _mm512_loadu_si512(from); }
  static Sum product(Vector w, Vector x) { return dot(zero(), w, x); }
  static Sum dot(Sum sum, Vector w, Vector x) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
  }

  static Four finish(Four sums, Four bias) { return _mm_fmadd_ps(sums, _mm_set1_ps(kHeadroom), bias); }
  static void pack_block(const void* x, Float, int64_t first, uint16_t* to, float*) {
    const uint16_t* from = static_cast<const uint16_t*>(x) + first;
    const Vector a = load(from), b = load(from + 32), c = load(from + 64), d = load(from + 96);
    // Elements 8i + 4h of words i = 0 … 7, which lie in two vectors; the same picks serve words 8 … 15.
    alignas(64) static constexpr uint16_t kPick[16] = {0,  4,  8,  12, 16, 20, 24, 28,
                                                       32, 36, 40, 44, 48, 52, 56, 60};
    Vector pick = _mm512_broadcast_i64x4(_mm256_load_si256(reinterpret_cast<const __m256i*>(kPick)));
    for (int j = 0; j < 4; ++j, pick = _mm512_add_epi16(pick, _mm512_set1_epi16(1))) {
      const Vector low = _mm512_permutex2var_epi16(a, pick, b), high = _mm512_permutex2var_epi16(c, pick, d);
      _mm512_storeu_si512(to + 32 * j, _mm512_mask_mov_epi16(low, 0xffff0000, high));
    }
  }
};

}  // namespace

extern const W4FewRows kW4FewAvx512Bf16;
const W4FewRows kW4FewAvx512Bf16 = make_few_rows<Avx512Bf16>("avx512_bf16");

}  // namespace tarq
#endif
