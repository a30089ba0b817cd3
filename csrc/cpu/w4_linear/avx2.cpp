// AVX2 with FMA and F16C, fp32 arithmetic.
//
// A code needs no shift: a masked word is the code times 16^j, which a float holds exactly, and the
// activations of step j are packed divided by 16^j. Only the last step's code, which would reach the sign
// bit, is shifted down. Zero points are multiplied with the activations' sums, group by group. So a weight
// costs a mask and a conversion, both on other units than its multiply-add.
//
// If one input dominates the others, that subtraction would cancel their contribution to weights that are
// zero there: such rows pay one more multiply-add, which subtracts the zero point from each code.
#if defined(__x86_64__)
#include <cstdint>
#include <cstring>
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>

#include "cpu/w4_linear/avx2_deferred_zeros.h"
#include "cpu/w4_linear/engine.h"

namespace tarq {
namespace {

constexpr int kSteps = 8, kWidth = 8;

/// What step j keeps of a word.
struct StepMasks {
  alignas(32) uint32_t mask[kSteps][kWidth];
};
constexpr StepMasks step_masks() {
  StepMasks c{};
  for (int j = 0; j < kSteps; ++j)
    for (int i = 0; i < kWidth; ++i) c.mask[j][i] = 15u << 4 * j;
  return c;
}
constexpr StepMasks kStepMasks = step_masks();

inline __m256i step_mask(const StepMasks* masks, int j) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(masks->mask[j]));
}

struct MasksInRegisters {
  __m256i of[kSteps - 1];
};
inline __m256i step_mask(const MasksInRegisters& masks, int j) { return masks.of[j]; }

struct Avx2 : Avx2Words {
  using Element = float;
  using Vector = __m256;
  using Sum = __m256;
  static constexpr int steps = kSteps, width = kWidth, fused_rows = 4, together = 2, height = 4;
  static constexpr bool defers_zeros = true, fused_by_word = true;
  static constexpr int64_t depth = 256;  // 24 kB of weights

  static constexpr float unit(int j) { return j < kSteps - 1 ? float(1u << 4 * j) : 1.0f; }
  /// Sums in flight: at least four, at most eight.
  static constexpr int weight_rows(int rows) { return rows <= 2 ? 4 : 2; }

  /// The masks' address, which the compiler cannot see through: it would build all of them again in every
  /// block.
  static const StepMasks* steps_in_memory() {
    const StepMasks* masks = &kStepMasks;
    __asm__("" : "+r"(masks));
    return masks;
  }
  static MasksInRegisters steps_in_registers() {
    MasksInRegisters masks;
    for (int j = 0; j < kSteps - 1; ++j) masks.of[j] = in_register(step_mask(&kStepMasks, j));
    return masks;
  }

  struct Codes {
    void read(const float*) {}
    template <class Steps>
    Vector operator()(Words words, const Steps& masks, int j) const {
      if (j == kSteps - 1) return _mm256_cvtepi32_ps(_mm256_srli_epi32(words, 32 - 4));
      return _mm256_cvtepi32_ps(_mm256_and_si256(words, step_mask(masks, j)));
    }
  };
  template <int parts>
  struct Centred {
    __m256 zero;
    void read(const float* zeros) { zero = spread<parts>(zeros); }
    template <class Steps>
    Vector operator()(Words words, const Steps& masks, int j) const {
      return _mm256_fnmadd_ps(zero, _mm256_set1_ps(unit(j)), Codes()(words, masks, j));
    }
  };
  using Deferred = DeferredZeros<Avx2>;
  static bool has_outlier(const W4Product& product) { return has_outlier_row<Avx2>(product); }

  static Vector load(const float* from) { return _mm256_loadu_ps(from); }
  static Sum zero() { return _mm256_setzero_ps(); }
  static Sum add(Sum a, Sum b) { return _mm256_add_ps(a, b); }
  static Sum product(Vector w, Vector x) { return _mm256_mul_ps(w, x); }
  static Sum dot(Sum sum, Vector w, Vector x) { return _mm256_fmadd_ps(w, x, sum); }
  static Sum multiply_add(Sum sum, Sum a, Sum b) { return _mm256_fmadd_ps(a, b, sum); }
  static Four reduce(const Sum* sums) { return sum_each(sums); }

  static Four finish(Four sums, Four bias) { return _mm_fmadd_ps(sums, _mm_set1_ps(kHeadroom), bias); }

  static void pack_block(const void* x, Float type, int64_t first, float* to, float* sums) {
    __m256 v[8];
    for (int i = 0; i < 8; ++i) v[i] = load_float8(x, type, first + 8 * i);
    transpose(v);
    if (sums) {
      __m256 sum = v[0];
      for (int j = 1; j < kSteps; ++j) sum = _mm256_add_ps(sum, v[j]);
      _mm256_storeu_ps(sums, _mm256_mul_ps(sum, _mm256_set1_ps(1 / kHeadroom)));
    }
    for (int j = 0; j < kSteps; ++j)
      _mm256_storeu_ps(to + j * kWidth, _mm256_mul_ps(v[j], _mm256_set1_ps(1 / kHeadroom / unit(j))));
  }

  // Many rows: one output a lane.
  static void load_columns(const uint32_t* const* rows, int64_t w, int64_t there, Words* out) {
    __m256 v[8];
    for (int i = 0; i < 8; ++i) v[i] = _mm256_castsi256_ps(load_words(rows[i] + w, window(there)));
    transpose(v);
    for (int i = 0; i < 8; ++i) out[i] = _mm256_castps_si256(v[i]);
  }
  template <bool symmetric>
  static Sum word_codes(Words words, int j) {
    __m256i codes = _mm256_and_si256(_mm256_srli_epi32(words, 4 * j), _mm256_set1_epi32(15));
    if constexpr (symmetric) codes = _mm256_sub_epi32(codes, _mm256_set1_epi32(8));
    return _mm256_cvtepi32_ps(codes);
  }
  static Sum load_sums(const float* from) { return _mm256_loadu_ps(from); }
  static void store_sums(float* to, Sum v) { _mm256_storeu_ps(to, v); }
  static void write_sums(void* to, Float type, int64_t i, Sum v) {
    write_float4(to, type, i, _mm256_castps256_ps128(v));
    write_float4(to, type, i + 4, _mm256_extractf128_ps(v, 1));
  }
  static Sum multiply(Sum a, Sum b) { return _mm256_mul_ps(a, b); }
  static Sum subtract(Sum a, Sum b) { return _mm256_sub_ps(a, b); }
  static void pack_columns(const void* x, Float type, int64_t first, int64_t stride, int64_t rows,
                           float* to) {
    __m256 v[8];
    for (int i = 0; i < 8; ++i)
      v[i] = i < rows ? load_float8(x, type, first + i * stride) : _mm256_setzero_ps();
    transpose(v);
    for (int i = 0; i < 8; ++i) _mm_storeu_ps(to + i * height, _mm256_castps256_ps128(v[i]));
  }
};

}  // namespace

extern const W4FewRows kW4FewAvx2;
extern const W4ManyRows kW4ManyAvx2;
const W4FewRows kW4FewAvx2 = make_few_rows<Avx2>("avx2");
const W4ManyRows kW4ManyAvx2 = make_many_rows<Avx2>("avx2");

}  // namespace tarq
#endif
