// AVX2 with FMA and F16C, fp32 arithmetic: a 16-entry table is two registers, chosen between by a code's top
// bit.
#if defined(__x86_64__)
#include <cstdint>
#include <cstring>
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>

#include "w4_linear_body.h"

namespace tarq {
namespace {

struct Avx2 {
  using Element = float;
  using Words = __m256i;
  using Vector = __m256;
  using Sum = __m256;
  static constexpr int lanes = 8, steps = 8, width = 8, micro_rows = 2;

  static int source(int e) { return 8 * (e % 8) + e / 8; }
  static Words load_words(const uint32_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static __m256i lanes_below(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Words load_words_part(const uint32_t* from, int count) {
    return _mm256_maskload_epi32(reinterpret_cast<const int*>(from), lanes_below(count));
  }
  static Words shift(Words words) { return _mm256_srli_epi32(words, 4); }
  static Vector lookup_one(const float* table, Words words) {
    const Vector low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), words);
    const Vector high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), words);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(words, 28)));
  }
  template <int parts>
  static Vector lookup(const float* table, Words words) {
    Vector v = lookup_one(table, words);
    for (int p = 1; p < parts; ++p) {
      const __m256 lower = _mm256_castsi256_ps(lanes_below(8 / parts * p));
      v = _mm256_blendv_ps(lookup_one(table + 16 * p, words), v, lower);
    }
    return v;
  }
  static Vector load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Vector v) { _mm256_storeu_ps(to, v); }
  static Sum zero() { return _mm256_setzero_ps(); }
  static Sum dot(Sum sum, Vector w, Vector x) { return _mm256_fmadd_ps(w, x, sum); }
  static void reduce(const Sum* s, float* out) {
    const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(s[0], s[1]), _mm256_hadd_ps(s[2], s[3]));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
  }
  static Vector round(Vector v, Float type) {
    if (type == Float::f16)
      return _mm256_cvtph_ps(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    if (type == Float::f32) return v;
    const __m256i bits = _mm256_castps_si256(v);  // bf16 to nearest even
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    return _mm256_castsi256_ps(_mm256_and_si256(sum, _mm256_set1_epi32(int(0xffff0000))));
  }
  static void fill_table(float* table, const void* scales, Float type, int64_t i, float zero) {
    const __m256 scale = _mm256_set1_ps(read(scales, type, i)), zeros = _mm256_set1_ps(zero);
    const __m256 low = _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7),
                 high = _mm256_setr_ps(8, 9, 10, 11, 12, 13, 14, 15);
    _mm256_storeu_ps(table, round(_mm256_mul_ps(_mm256_sub_ps(low, zeros), scale), type));
    _mm256_storeu_ps(table + 8, round(_mm256_mul_ps(_mm256_sub_ps(high, zeros), scale), type));
  }
  static void pack_block(const void* x, Float type, int64_t first, float* to) {
    for (int e = 0; e < 64; ++e) to[e] = read(x, type, first + source(e));
  }
};

}  // namespace

const W4Kernel kW4Avx2 = make_kernel<Avx2>("avx2", Float::f32, 4, 1 << 30);

}  // namespace tarq
#endif
