// AVX2 with FMA and F16C, fp32 arithmetic: a 16-entry table is two registers, chosen between by a code's top
// bit.
#if defined(__x86_64__)
#include <cstdint>
#include <cstring>
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>

#include "w4_linear_avx2.h"

namespace tarq {
namespace {

struct Avx2 : X86 {
  using Element = float;
  using Words = __m256i;
  using Vector = __m256;
  using Sum = __m256;
  struct Table {
    __m256 low, high;
  };
  static constexpr int lanes = 8, steps = 8, width = 8, fused_rows = 2, micro_rows = 2;
  static constexpr bool scale_after = false;

  static int source(int e) { return 8 * (e % 8) + e / 8; }
  using Window = int;
  static Window window(int64_t words) { return words < lanes ? int(words) : lanes; }
  static __m256i lanes_below(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Words load_words(const uint32_t* from, Window window) {
    if (__builtin_expect(window == lanes, 1))
      return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm256_maskload_epi32(reinterpret_cast<const int*>(from), lanes_below(window));
  }
  static Words shift(Words words) { return _mm256_srli_epi32(words, 4); }
  static __m256 round(__m256 v, Float type) {
    if (type == Float::f32) return v;
    if (type == Float::f16)
      return _mm256_cvtph_ps(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    const __m256i bits = _mm256_castps_si256(v);  // bf16, to nearest even; scales are finite
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    return _mm256_castsi256_ps(_mm256_and_si256(sum, _mm256_set1_epi32(int(0xffff0000))));
  }
  static Table weight_table(float scale, float zero, Float type) {
    const __m256 codes = _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7), step = _mm256_set1_ps(scale);
    return {round(_mm256_mul_ps(_mm256_sub_ps(codes, _mm256_set1_ps(zero)), step), type),
            round(_mm256_mul_ps(_mm256_sub_ps(codes, _mm256_set1_ps(zero - 8.0f)), step), type)};
  }
  static Vector lookup_one(const Table& table, Words words) {
    const Vector low = _mm256_permutevar8x32_ps(table.low, words);
    const Vector high = _mm256_permutevar8x32_ps(table.high, words);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(words, 28)));
  }
  template <int parts>
  static Vector lookup(const Table* tables, Words words) {
    Vector v = lookup_one(tables[0], words);
    for (int p = 1; p < parts; ++p)
      v = _mm256_blendv_ps(lookup_one(tables[p], words), v, _mm256_castsi256_ps(lanes_below(8 / parts * p)));
    return v;
  }
  /// Inputs 8j … 8j + 7: one word in every lane, shifted to the lane's code.
  static Vector lookup_natural(const Table& table, Words words, int j) {
    const Words word = _mm256_permutevar8x32_epi32(words, _mm256_set1_epi32(j));
    return lookup_one(table, _mm256_srlv_epi32(word, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28)));
  }
  static Vector load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Vector v) { _mm256_storeu_ps(to, v); }
  static Sum zero() { return _mm256_setzero_ps(); }
  static Sum add(Sum a, Sum b) { return _mm256_add_ps(a, b); }
  static Sum dot(Sum sum, Vector w, Vector x) { return _mm256_fmadd_ps(w, x, sum); }
  static Four reduce(const Sum* sums) { return sum_each(sums); }
  static void pack_block(const void* x, Float type, int64_t first, float* to) {
    for (int e = 0; e < 64; ++e) to[e] = read(x, type, first + source(e));
  }
};

}  // namespace

const W4Kernel kW4Avx2 = make_kernel<Avx2>("avx2", Float::f32, 32);

}  // namespace tarq
#endif
