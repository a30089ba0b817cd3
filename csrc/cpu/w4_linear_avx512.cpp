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

struct Avx512 : Avx512Words {
  using Element = float;
  using Vector = __m512;
  using Table = __m512;
  static constexpr int steps = 8, width = 16, fused_rows = 4;
  static constexpr bool scale_after = false;

  static int source(int e) { return 8 * (e % 16) + e / 16; }
  static Words shift(Words words) { return _mm512_srli_epi32(words, 4); }
  static Table weight_table(float scale, float zero) { return weight_table16(scale, zero); }
  template <int parts>
  static Vector lookup(const Table* tables, Words words) {
    Vector v = _mm512_permutexvar_ps(words, tables[0]);
    for (int p = 1; p < parts; ++p)
      v = _mm512_mask_permutexvar_ps(v, __mmask16(0xffffu << (16 / parts * p)), words, tables[p]);
    return v;
  }
  static Vector weights(Words words, Sum scale, Sum zero) { return word_weights(words, scale, zero); }
  static Vector load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, Vector v) { _mm512_storeu_ps(to, v); }
  static Sum dot(Sum sum, Vector w, Vector x) { return _mm512_fmadd_ps(w, x, sum); }
  static void pack_block(const void* x, Float type, int64_t first, float* to) {
    for (int e = 0; e < 128; ++e) to[e] = read(x, type, first + source(e));
  }
};

}  // namespace

const W4Kernel kW4Avx512 = make_kernel<Avx512>("avx512", Float::f32, 1 << 30);

}  // namespace tarq
#endif
