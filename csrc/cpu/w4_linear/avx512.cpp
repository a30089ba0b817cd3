// AVX-512 (F, BW, VL, DQ), fp32 arithmetic: a 16-entry table is one register, and vpermps reads only the low
// four bits of every lane, so a step is a shift, a look-up and a multiply-add.
#if defined(__x86_64__)
#include <cstdint>
#include <cstring>
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
// GCC 12 takes the don't-care operand of its own intrinsics for an uninitialised variable.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "cpu/w4_linear/avx512.h"
#include "cpu/w4_linear/engine.h"

namespace tarq {
namespace {

struct Avx512 : Avx512Words {
  using Element = float;
  using Vector = __m512;
  static constexpr int steps = 8, width = 16, fused_rows = 4, together = 1, height = 8;
  static constexpr bool defers_zeros = false, fused_by_word = true;
  static constexpr int64_t depth = 128;  // 24 kB of weights

  static constexpr float unit(int) { return 1.0f; }
  static constexpr int weight_rows(int rows) { return rows <= 2 ? 4 : 2; }

  struct Steps {};
  static Steps steps_in_memory() { return {}; }
  static Steps steps_in_registers() { return {}; }
  static Vector lookup(__m512 table, Words words, int j) {
    return _mm512_permutexvar_ps(_mm512_srli_epi32(words, 4 * j), table);
  }

  /// Of one group, the zero point is in the table.
  template <int parts>
  struct Centred {
    __m512 table, zero;
    void read(const float* zeros) {
      zero = spread<parts>(zeros);
      table = parts == 1 ? _mm512_sub_ps(code_table(), zero) : code_table();
    }
    Vector operator()(Words words, Steps, int j) const {
      const Vector codes = lookup(table, words, j);
      return parts == 1 ? codes : _mm512_sub_ps(codes, zero);
    }
  };
  static Vector load(const float* from) { return _mm512_loadu_ps(from); }
  static Sum product(Vector w, Vector x) { return _mm512_mul_ps(w, x); }
  static Sum dot(Sum sum, Vector w, Vector x) { return _mm512_fmadd_ps(w, x, sum); }

  static Four finish(Four sums, Four bias) { return _mm_fmadd_ps(sums, _mm_set1_ps(kHeadroom), bias); }
  static void pack_block(const void* x, Float type, int64_t first, float* to, float*) {
    for (int half = 0; half < 2; ++half) {
      __m256 v[8];
      for (int i = 0; i < 8; ++i) v[i] = load_float8(x, type, first + 64 * half + 8 * i);
      transpose(v);
      for (int j = 0; j < steps; ++j)
        _mm256_storeu_ps(to + j * width + 8 * half, _mm256_mul_ps(v[j], _mm256_set1_ps(1 / kHeadroom)));
    }
  }

  // Many rows: one output a lane.
  template <bool symmetric>
  static Sum word_codes(Words words, int j) {
    return lookup(symmetric ? _mm512_sub_ps(code_table(), _mm512_set1_ps(8)) : code_table(), words, j);
  }
  static void pack_columns(const void* x, Float type, int64_t first, int64_t stride, int64_t rows,
                           float* to) {
    __m256 v[8];
    for (int i = 0; i < 8; ++i)
      v[i] = i < rows ? load_float8(x, type, first + i * stride) : _mm256_setzero_ps();
    transpose(v);
    for (int i = 0; i < 8; ++i) _mm256_storeu_ps(to + i * height, v[i]);
  }
};

}  // namespace

extern const W4FewRows kW4FewAvx512;
extern const W4ManyRows kW4ManyAvx512;
const W4FewRows kW4FewAvx512 = make_few_rows<Avx512>("avx512");
const W4ManyRows kW4ManyAvx512 = make_many_rows<Avx512>("avx512");

}  // namespace tarq
#endif
