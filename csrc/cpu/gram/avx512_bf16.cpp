// AVX-512 with BF16 for unweighted bf16 rows: vdpbf16ps multiplies the pairs of two positions and sums in
// fp32. Products of bf16 numbers are exact in fp32, so nothing is lost against converting them first.
#if defined(__x86_64__)
#include <cstdint>
#include <cstring>
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")
// GCC 12 takes the don't-care operand of its own intrinsics for an uninitialised variable.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "cpu/gram/avx512.h"
#include "cpu/gram/engine.h"

namespace tarq {
namespace {

struct Avx512Bf16 : Avx512Sums {
  using Step = uint32_t;
  static constexpr bool pairs = true;
  static constexpr int64_t depth = 384;

  static __m512bh load(const uint32_t* from) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(from)); }
  static __m512bh splat(uint32_t pair) { return reinterpret_cast<__m512bh>(_mm512_set1_epi32(int(pair))); }
  static Vector dot(Vector sum, __m512bh y, __m512bh x) { return _mm512_dpbf16_ps(sum, y, x); }
  static __m512i widen(const GramRows& rows, int64_t row, int64_t column) {
    const uint16_t* from = static_cast<const uint16_t*>(rows.data) + row * rows.stride + column;
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static void pack_step(const GramRows& rows, int64_t row, int64_t next, int64_t column, uint32_t* to) {
    const __m512i high = _mm512_slli_epi32(widen(rows, next, column), 16);
    _mm512_storeu_si512(to, _mm512_or_si512(widen(rows, row, column), high));
  }
};

}  // namespace

extern const GramKernel kGramAvx512Bf16;
const GramKernel kGramAvx512Bf16 = make_gram_kernel<Avx512Bf16>("avx512_bf16");

}  // namespace tarq
#endif
