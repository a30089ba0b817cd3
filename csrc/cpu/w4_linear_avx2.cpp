// AVX2 with FMA and F16C, fp32 arithmetic.
//
// A code needs no shift: what a mask leaves of a word is the code times 16^j, which a float holds exactly,
// and the activations of step j are packed divided by 16^j. Only the last step's code, which would take the
// sign, is shifted down. Zero points meet the activations' sums, a group at a time. So a weight costs a mask
// and a conversion, both on other units than its multiply-add.
//
// Where one input outweighs the others, that difference would lose what they say to the weights that are zero
// there: such rows pay for one multiply-add more, which takes the zero point from each code.
#if defined(__x86_64__)
#include <algorithm>
#include <cstdint>
#include <cstring>
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>

#include "w4_linear_avx2.h"

namespace tarq {
namespace {

/// What the loops shared with other instruction sets ask: sizes, words, and how four sums are finished.
struct Avx2 : Avx2Words {
  using Element = float;
  using Sum = __m256;
  static constexpr int steps = 8, width = 8;
  static int source(int e) { return 8 * (e % 8) + e / 8; }
  static Four reduce(const Sum* sums) { return sum_each(sums); }
};

constexpr int64_t kFusedRows = 4, kTiledRows = int64_t(1) << 40;
constexpr int kSteps = Avx2::steps, kWidth = Avx2::width;

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

/// Activations are packed divided by this, so that sums do not overflow before the result does.
constexpr float kHeadroom = 256.0f;

/// What a code of step j counts for in `step_codes`.
constexpr float step_unit(int j) { return j < kSteps - 1 ? float(1u << 4 * j) : 1.0f; }

/// Their address, which the compiler cannot see through: it would build all of them again in every block.
inline const StepMasks* masks_in_memory() {
  const StepMasks* masks = &kStepMasks;
  __asm__("" : "+r"(masks));
  return masks;
}

/// Keeps the compiler from reading a vector from memory again for each of its uses.
template <class Vector>
inline Vector in_register(Vector v) {
  __asm__("" : "+x"(v));
  return v;
}

inline __m256i step_mask(const StepMasks* masks, int j) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(masks->mask[j]));
}
inline __m256i step_mask(const __m256i* masks, int j) { return masks[j]; }

/// Codes of step j times step_unit(j); masks of all steps but the last, in memory or in registers.
template <class Masks>
inline __m256 step_codes(__m256i words, const Masks* masks, int j) {
  if (j == kSteps - 1) return _mm256_cvtepi32_ps(_mm256_srli_epi32(words, 32 - 4));
  return _mm256_cvtepi32_ps(_mm256_and_si256(words, step_mask(masks, j)));
}

// ---- activations

inline void transpose(__m256* v) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
    a[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
    v[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
  }
}

/// A block's 64 inputs in block order, divided by kHeadroom and step j by its unit; the sum of each word's
/// inputs to `sums` unless it is null.
inline void pack_block(__m256* v, float* to, float* sums) {
  transpose(v);
  if (sums) {
    __m256 sum = v[0];
    for (int j = 1; j < kSteps; ++j) sum = _mm256_add_ps(sum, v[j]);
    _mm256_storeu_ps(sums, _mm256_mul_ps(sum, _mm256_set1_ps(1 / kHeadroom)));
  }
  for (int j = 0; j < kSteps; ++j)
    _mm256_storeu_ps(to + j * kWidth, _mm256_mul_ps(v[j], _mm256_set1_ps(1 / kHeadroom / step_unit(j))));
}

void pack_input(const void* x, Float x_type, int64_t rows, int64_t in_features, void* out, int64_t stride,
                float* sums) {
  const int64_t blocks = ceil_div(in_features, kBlock<Avx2>);
  for (int64_t m = 0; m < rows; ++m) {
    float* to = static_cast<float*>(out) + m * stride;
    for (int64_t b = 0; b < blocks; ++b, to += kBlock<Avx2>) {
      const int64_t first = m * in_features + b * kBlock<Avx2>, left = in_features - b * kBlock<Avx2>;
      __m256 v[8];
      if (left >= kBlock<Avx2>) {
        for (int i = 0; i < 8; ++i) v[i] = load_float8(x, x_type, first + 8 * i);
      } else {
        float tail[kBlock<Avx2>] = {};
        for (int64_t k = 0; k < left; ++k) tail[k] = read(x, x_type, first + k);
        for (int i = 0; i < 8; ++i) v[i] = _mm256_loadu_ps(tail + 8 * i);
      }
      pack_block(v, to, sums ? sums + (m * blocks + b) * kWidth : nullptr);
    }
  }
}

/// An activation row's sums, their headroom taken back, and the bias: rounded and stored.
inline void store_sums(const W4Layer& layer, const W4Product& product, int64_t m, int64_t n, __m128 sums,
                       __m128 bias) {
  store_tile<Avx2>(layer, product, m, n, _mm_fmadd_ps(sums, _mm_set1_ps(kHeadroom), bias));
}

// ---- few rows: weights live in registers only

/// Whether the largest input of some row is a sixteenth of its sum of magnitudes, or not a number.
bool outweighed(const W4Product& product) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  for (int64_t m = 0; m < product.rows; ++m) {
    const float* x = static_cast<const float*>(product.x) + m * product.stride;
    __m256 largest = _mm256_setzero_ps(), sum = largest;
    for (int64_t b = 0; b < product.sum_stride / kWidth; ++b, x += kBlock<Avx2>)
#pragma GCC unroll 8
      for (int j = 0; j < kSteps; ++j) {
        const __m256 input = _mm256_mul_ps(_mm256_loadu_ps(x + j * kWidth), _mm256_set1_ps(step_unit(j)));
        const __m256 magnitude = _mm256_andnot_ps(sign, input);
        largest = _mm256_max_ps(largest, magnitude);
        sum = _mm256_add_ps(sum, magnitude);
      }
    alignas(32) float most[kWidth], total[kWidth];
    _mm256_store_ps(most, largest);
    _mm256_store_ps(total, sum);
    float largest_of_all = 0.0f, total_of_all = 0.0f;
    for (int i = 0; i < kWidth; ++i) {
      largest_of_all = std::max(largest_of_all, most[i]);
      total_of_all += total[i];
    }
    if (!(largest_of_all * 16 < total_of_all)) return true;
  }
  return false;
}

/// The sums of an activation row's inputs that zero points are multiplied with, in the order of TileGroups.
struct GroupTotals {
  float* of;       // [kFusedRows, stride]
  int64_t stride;  // entries of the padded row, in whole vectors

  static int64_t bytes(const W4Layer& layer) { return kFusedRows * padded(layer) * int64_t(sizeof(float)); }

  static GroupTotals in(void* scratch, const W4Layer& layer, const W4Product& product) {
    const GroupTotals totals{static_cast<float*>(scratch), padded(layer)};
    const int64_t words = layer.groups == 1                  ? product.sum_stride
                          : TileGroups::by_word<Avx2>(layer) ? 1
                                                             : layer.group_size / kSteps;
    for (int64_t m = 0; m < product.rows; ++m) {
      const float *word = product.sums + m * product.sum_stride, *const end = word + product.sum_stride;
      for (int64_t g = 0; g < totals.stride; ++g) {
        float total = 0.0f;
        for (int64_t w = 0; w < words && word < end; ++w) total += *word++;
        totals.of[m * totals.stride + g] = total;
      }
    }
    return totals;
  }

 private:
  static int64_t padded(const W4Layer& layer) {
    return round_up(TileGroups::row_stride<Avx2>(layer), kWidth);
  }
};

/// Takes zero points' share of the products from the sums.
template <int rows>
inline void subtract_zeros(const TileGroups& groups, const GroupTotals& totals, __m256 (*sums)[kTile]) {
  for (int64_t g = 0; g < groups.stride; g += kWidth) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i there = _mm256_cmpgt_epi32(_mm256_set1_epi32(int(groups.stride - g)), lane);
    __m256 total[rows];
    for (int m = 0; m < rows; ++m) total[m] = _mm256_loadu_ps(totals.of + m * totals.stride + g);
    for (int r = 0; r < kTile; ++r) {
      const int64_t at = r * groups.stride + g;
      const __m256 zero = _mm256_mul_ps(_mm256_maskload_ps(groups.scales + at, there),
                                        _mm256_maskload_ps(groups.zeros + at, there));
      for (int m = 0; m < rows; ++m) sums[m][r] = _mm256_fnmadd_ps(zero, total[m], sums[m][r]);
    }
  }
}

/// `rows` activation rows times weight rows [r0, r0 + count) of a tile, as if zero points were zero unless
/// they are taken from each code; sums are stored by row, then weight row.
template <int parts, int rows, int count, bool each>
inline void fused_piece(const W4Layer& layer, const W4Product& product, const Tile<Avx2>& tile, int r0,
                        const TileGroups& groups, __m256 (*sums)[kTile]) {
  const float* x[rows];
  for (int m = 0; m < rows; ++m) x[m] = static_cast<const float*>(product.x) + m * product.stride;
  for (int m = 0; m < rows; ++m)
    for (int r = 0; r < count; ++r) sums[m][r0 + r] = _mm256_setzero_ps();
  for_runs<Avx2, parts>(layer, [&](int64_t first, int64_t end, int64_t group) __attribute__((always_inline)) {
    __m256 part[rows][count], zeros[count];
    for (int m = 0; m < rows; ++m)
      for (int r = 0; r < count; ++r) part[m][r] = _mm256_setzero_ps();
    if constexpr (each)
      for (int r = 0; r < count; ++r)
        zeros[r] = Avx2::spread<parts>(groups.zeros + (r0 + r) * groups.stride + group);
    for (int64_t b = first; b < end; ++b) {
      const StepMasks* const masks = masks_in_memory();  // here, or they would take all registers
      const int window = tile.window(b);
      __m256i words[count];
      for (int r = 0; r < count; ++r) words[r] = tile.load(r0 + r, b, window);
      // The last step first: its shifted words would be held meanwhile.
#pragma GCC unroll 8
      for (int j = kSteps - 1; j >= 0; --j) {
        __m256 codes[count];
        for (int r = 0; r < count; ++r) codes[r] = step_codes(words[r], masks, j);
        if constexpr (each)
          for (int r = 0; r < count; ++r)
            codes[r] = _mm256_fnmadd_ps(zeros[r], _mm256_set1_ps(step_unit(j)), codes[r]);
        for (int m = 0; m < rows; ++m) {
          const __m256 input = in_register(_mm256_loadu_ps(x[m] + b * kBlock<Avx2> + j * kWidth));
          for (int r = 0; r < count; ++r) part[m][r] = _mm256_fmadd_ps(codes[r], input, part[m][r]);
        }
      }
    }
    for (int r = 0; r < count; ++r) {
      const __m256 scale = Avx2::spread<parts>(groups.scales + (r0 + r) * groups.stride + group);
      for (int m = 0; m < rows; ++m) sums[m][r0 + r] = _mm256_fmadd_ps(scale, part[m][r], sums[m][r0 + r]);
    }
  });
}

// One activation row is not worth sharing: what a weight row wants of it comes from L1 as fast. Reading one
// weight row after another leaves registers for the masks and for four sums, and memory is read in order.

/// Whether two blocks from an even one on lie in one group.
inline bool groups_hold_pairs(const W4Layer& layer) {
  return layer.groups == 1 || layer.group_size % (2 * kBlock<Avx2>) == 0;
}

/// A block's codes times its inputs, added to four sums in turn; `fresh` begins them.
template <bool each, bool fresh>
__attribute__((always_inline)) inline void add_block(__m256i words, const float* x, const __m256i* masks,
                                                     __m256 zero, __m256* sums) {
#pragma GCC unroll 8
  for (int j = kSteps - 1; j >= 0; --j) {
    __m256 codes = step_codes(words, masks, j);
    if constexpr (each) codes = _mm256_fnmadd_ps(zero, _mm256_set1_ps(step_unit(j)), codes);
    const __m256 input = _mm256_loadu_ps(x + j * kWidth);
    __m256& sum = sums[j % 4];
    sum = fresh && j >= 4 ? _mm256_mul_ps(codes, input) : _mm256_fmadd_ps(codes, input, sum);
  }
}

/// What `fused_piece` computes, of one activation row and weight row r of a tile whose groups hold pairs.
template <bool each>
inline __m256 single_row(const W4Layer& layer, const W4Product& product, const Tile<Avx2>& tile, int r,
                         const TileGroups& groups) {
  __m256i masks[kSteps - 1];
  for (int j = 0; j < kSteps - 1; ++j) masks[j] = in_register(step_mask(&kStepMasks, j));
  const int64_t blocks = padded_inputs<Avx2>(layer) / kBlock<Avx2>,
                paired = tile.words / (2 * Avx2::lanes) * 2;
  const int64_t run = blocks_of_group<Avx2>(layer);
  const float *scale = groups.scales + r * groups.stride, *zero = groups.zeros + r * groups.stride;
  const float* x = static_cast<const float*>(product.x);
  __m256 sum = _mm256_setzero_ps(), part[4], zeros = sum;
  const auto add_parts = [&] {
    const __m256 total = _mm256_add_ps(_mm256_add_ps(part[0], part[1]), _mm256_add_ps(part[2], part[3]));
    sum = _mm256_fmadd_ps(_mm256_broadcast_ss(scale), total, sum);
  };
  int64_t b = 0;
  for (int64_t left = run; b < paired; b += 2, x += 2 * kBlock<Avx2>) {  // straight code: a tenth faster
    if constexpr (each) zeros = _mm256_broadcast_ss(zero);
    add_block<each, true>(tile.load(r, b, Avx2::lanes), x, masks, zeros, part);
    add_block<each, false>(tile.load_near(r, b + 1, Avx2::lanes), x + kBlock<Avx2>, masks, zeros, part);
    add_parts();
    if ((left -= 2) > 0) continue;
    ++scale, ++zero, left = run;
  }
  if constexpr (each) zeros = _mm256_broadcast_ss(zero);
  for (; b < blocks; ++b, x += kBlock<Avx2>) {
    add_block<each, true>(tile.load(r, b, tile.window(b)), x, masks, zeros, part);
    add_parts();
  }
  return sum;
}

template <int parts, bool each, int rows>
void fused_rows(const W4Layer& layer, const W4Product& product, int64_t begin, int64_t end,
                const TileGroups& groups, const GroupTotals& totals) {
  constexpr int count = rows <= 2 ? 4 : 2;  // sums in flight: at least four, at most eight
  const bool row_by_row = parts == 1 && rows == 1 && groups_hold_pairs(layer);
  for (int64_t n = begin; n < end; n += kTile) {
    groups.read_rows<Avx2>(layer, n);
    const Tile<Avx2> tile(layer, n);
    const __m128 bias = tile_bias<Avx2>(layer, n);
    __m256 sums[rows][kTile];
    if (row_by_row)
      for (int r = 0; r < kTile; ++r) sums[0][r] = single_row<each>(layer, product, tile, r, groups);
    else
      for (int r = 0; r < kTile; r += count)
        fused_piece<parts, rows, count, each>(layer, product, tile, r, groups, sums);
    if constexpr (!each) subtract_zeros<rows>(groups, totals, sums);
    for (int m = 0; m < rows; ++m) store_sums(layer, product, m, n, sum_each(sums[m]), bias);
  }
}

template <int parts, bool each>
void fused_tiles(const W4Layer& layer, const W4Product& product, int64_t begin, int64_t end,
                 const TileGroups& groups, const GroupTotals& totals) {
  constexpr decltype(&fused_rows<parts, each, 1>) of_rows[kFusedRows] = {
      fused_rows<parts, each, 1>, fused_rows<parts, each, 2>, fused_rows<parts, each, 3>,
      fused_rows<parts, each, 4>};
  of_rows[product.rows - 1](layer, product, begin, end, groups, totals);
}

// ---- many rows: a tile's weights are decoded once for a block of rows

constexpr int64_t kDepth = 640;  // inputs of a pass: a decoded tile of them, 16 kB, stays in L1
constexpr int64_t kHeight = 96;  // activation rows of a pass: their inputs stay in L2
constexpr int64_t kPanel = 256;  // outputs whose partial sums are held
constexpr int kMicroRows = 3;    // × kTile sums: twelve registers, and four for operands

/// Weights of blocks [first, end) of a tile's rows, those of a step times its unit.
template <int parts>
void decode_blocks(const W4Layer& layer, int64_t n, int64_t first, int64_t end, const TileGroups& groups,
                   Decoded<Avx2> to) {
  const StepMasks* const masks = masks_in_memory();
  const Tile<Avx2> tile(layer, n);
  const int64_t run = blocks_of_group<Avx2>(layer);
  for (int64_t b = first; b < end; ++b, to.out += kSteps * to.vector_stride) {
    const int64_t group = parts > 1 ? b * parts : b / run;
    const int window = tile.window(b);
    for (int r = 0; r < kTile; ++r) {
      const int64_t at = r * groups.stride + group;
      const __m256i words = tile.load(r, b, window);
      const __m256 scale = Avx2::spread<parts>(groups.scales + at);
      const __m256 zero = Avx2::spread<parts>(groups.zeros + at);
#pragma GCC unroll 8
      for (int j = 0; j < kSteps; ++j) {
        const __m256 codes = step_codes(words, masks, j);
        const __m256 weight = _mm256_fnmadd_ps(zero, _mm256_set1_ps(step_unit(j)), codes);
        _mm256_storeu_ps(to.out + r * to.row_stride + j * to.vector_stride, _mm256_mul_ps(weight, scale));
      }
    }
  }
}

/// The same for any group size, one code at a time.
void decode_any(const W4Layer& layer, int64_t n, int64_t first, int64_t end, Decoded<Avx2> to) {
  for (int64_t b = first; b < end; ++b, to.out += kSteps * to.vector_stride)
    for (int r = 0; r < kTile; ++r)
      for (int e = 0; e < kBlock<Avx2>; ++e) {
        const int64_t k = b * kBlock<Avx2> + Avx2::source(e);
        const float weight = k < layer.in_features ? weight_at(layer, clamp_row(layer, n + r), k) : 0.0f;
        to.out[r * to.row_stride + e / kWidth * to.vector_stride + e % kWidth] =
            weight * step_unit(e / kWidth);
      }
}

void decode_tile(const W4Layer& layer, int64_t n, int64_t first, int64_t end, const TileGroups& groups,
                 Decoded<Avx2> to) {
  const int parts = block_parts<Avx2>(layer);
  if (parts == 0) return decode_any(layer, n, first, end, to);
  groups.read_rows<Avx2>(layer, n);
  const auto decode = parts == 1   ? decode_blocks<1>
                      : parts == 2 ? decode_blocks<2>
                      : parts == 4 ? decode_blocks<4>
                                   : decode_blocks<8>;
  decode(layer, n, first, end, groups, to);
}

/// rows × kTile partial sums of a pass, added to acc [rows].
template <int rows>
void micro_tile(const float* weights, int64_t blocks, const float* x, int64_t stride, __m128* acc) {
  __m256 sums[rows][kTile];
  for (int m = 0; m < rows; ++m)
    for (int r = 0; r < kTile; ++r) sums[m][r] = _mm256_setzero_ps();
  for (int64_t v = 0; v < blocks * kSteps; ++v, weights += kTile * kWidth, x += kWidth)
    for (int r = 0; r < kTile; ++r) {
      const __m256 weight = _mm256_loadu_ps(weights + r * kWidth);
      for (int m = 0; m < rows; ++m)
        sums[m][r] = _mm256_fmadd_ps(weight, _mm256_loadu_ps(x + m * stride), sums[m][r]);
    }
  for (int m = 0; m < rows; ++m) acc[m] = _mm_add_ps(acc[m], sum_each(sums[m]));
}

// One vector of inputs of three rows times a tile's: twelve sums in ymm0 … 11, inputs in 12 … 14, a weight
// in 15.
#define TARQ_ROW(weight, s0, s1, s2)       \
  "vmovups " weight                        \
  "(%[w]), %%ymm15\n\t"                    \
  "vfmadd231ps %%ymm12, %%ymm15, %%ymm" s0 \
  "\n\t"                                   \
  "vfmadd231ps %%ymm13, %%ymm15, %%ymm" s1 \
  "\n\t"                                   \
  "vfmadd231ps %%ymm14, %%ymm15, %%ymm" s2 "\n\t"
#define TARQ_VECTOR(input, w0, w1, w2, w3)                                                        \
  "vmovups " input                                                                                \
  "(%[x0]), %%ymm12\n\t"                                                                          \
  "vmovups " input                                                                                \
  "(%[x1]), %%ymm13\n\t"                                                                          \
  "vmovups " input "(%[x2]), %%ymm14\n\t" TARQ_ROW(w0, "0", "4", "8") TARQ_ROW(w1, "1", "5", "9") \
      TARQ_ROW(w2, "2", "6", "10") TARQ_ROW(w3, "3", "7", "11")

#define TARQ_CLEAR(s, at) "vxorps %%ymm" s ", %%ymm" s ", %%ymm" s "\n\t"
#define TARQ_STORE(s, at) "vmovaps %%ymm" s ", " at "(%[sums])\n\t"
#define TARQ_EACH_SUM(do)                                                                               \
  do                                                                                                    \
  ("0", "0") do("1", "32") do("2", "64") do("3", "96") do("4", "128") do("5", "160") do("6", "192") do( \
      "7", "224") do("8", "256") do("9", "288") do("10", "320") do("11", "352")

/// The full register tile. GCC, left to itself, loads operands early or again and spills sums for it, which
/// costs a third of the speed. The rows of the next strip are fetched meanwhile.
template <>
void micro_tile<3>(const float* weights, int64_t blocks, const float* x, int64_t stride, __m128* acc) {
  const float *x0 = x, *x1 = x + stride, *x2 = x + 2 * stride;
  const int64_t ahead = 3 * stride * int64_t(sizeof(float));
  int64_t pairs = blocks * kSteps / 2;
  alignas(32) float sums[3][kTile][kWidth];
  __asm__ volatile(
      TARQ_EACH_SUM(TARQ_CLEAR)
      "1:\n\t"
      TARQ_VECTOR("0", "0", "32", "64", "96")
      TARQ_VECTOR("32", "128", "160", "192", "224")
      "prefetcht0 (%[x0], %[ahead])\n\t"
      "prefetcht0 (%[x1], %[ahead])\n\t"
      "prefetcht0 (%[x2], %[ahead])\n\t"
      "add $256, %[w]\n\t"
      "add $64, %[x0]\n\t"
      "add $64, %[x1]\n\t"
      "add $64, %[x2]\n\t"
      "dec %[pairs]\n\t"
      "jnz 1b\n\t"
      TARQ_EACH_SUM(TARQ_STORE)
      : [w] "+r"(weights), [x0] "+r"(x0), [x1] "+r"(x1), [x2] "+r"(x2), [pairs] "+r"(pairs)
      : [ahead] "r"(ahead), [sums] "r"(sums)
      : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",
        "xmm13", "xmm14", "xmm15", "cc", "memory");
  for (int m = 0; m < 3; ++m) {
    __m256 of_row[kTile];
    for (int r = 0; r < kTile; ++r) of_row[r] = _mm256_load_ps(sums[m][r]);
    acc[m] = _mm_add_ps(acc[m], sum_each(of_row));
  }
}
#undef TARQ_EACH_SUM
#undef TARQ_STORE
#undef TARQ_CLEAR
#undef TARQ_VECTOR
#undef TARQ_ROW

int64_t scratch_bytes(const W4Layer& layer) {
  const int64_t tiled = (kTile * kDepth + kHeight * kPanel) * int64_t(sizeof(float));
  return TileGroups::bytes<Avx2>(layer) + std::max(tiled, GroupTotals::bytes(layer));
}

void fused(const W4Layer& layer, const W4Product& product, int64_t begin, int64_t end, void* scratch) {
  const TileGroups groups = TileGroups::in<Avx2>(scratch, layer);
  const GroupTotals totals =
      GroupTotals::in(static_cast<char*>(scratch) + TileGroups::bytes<Avx2>(layer), layer, product);
  const int parts = block_parts<Avx2>(layer);
  const bool each = outweighed(product);
  const auto tiles = parts == 1   ? each ? fused_tiles<1, true> : fused_tiles<1, false>
                     : parts == 2 ? each ? fused_tiles<2, true> : fused_tiles<2, false>
                     : parts == 4 ? each ? fused_tiles<4, true> : fused_tiles<4, false>
                     : each       ? fused_tiles<8, true>
                                  : fused_tiles<8, false>;
  tiles(layer, product, begin, end, groups, totals);
}

void tiled(const W4Layer& layer, const W4Product& product, int64_t begin, int64_t end, void* scratch) {
  const TileGroups groups = TileGroups::in<Avx2>(scratch, layer);
  float* const weights =
      reinterpret_cast<float*>(static_cast<char*>(scratch) + TileGroups::bytes<Avx2>(layer));
  __m128* const acc = reinterpret_cast<__m128*>(weights + kTile * kDepth);  // [tile][row]
  const float* const x = static_cast<const float*>(product.x);
  const int64_t blocks = padded_inputs<Avx2>(layer) / kBlock<Avx2>;
  const int64_t depths = ceil_div(blocks * kBlock<Avx2>, kDepth), heights = ceil_div(product.rows, kHeight);
  for (int64_t h = 0; h < heights; ++h) {
    const int64_t m0 = product.rows * h / heights, rows = product.rows * (h + 1) / heights - m0;
    const int64_t strips = ceil_div(rows, kMicroRows);
    for (int64_t p0 = begin; p0 < end; p0 += kPanel) {
      const int64_t p1 = p0 + kPanel < end ? p0 + kPanel : end;
      std::memset(acc, 0, size_t(ceil_div(p1 - p0, kTile) * rows) * sizeof(__m128));
      for (int64_t d = 0; d < depths; ++d) {
        const int64_t b0 = blocks * d / depths, b1 = blocks * (d + 1) / depths;
        for (int64_t n = p0; n < p1; n += kTile) {
          decode_tile(layer, n, b0, b1, groups, {weights, kWidth, kTile * kWidth});
          __m128* const tile_acc = acc + (n - p0) / kTile * rows;
          for (int64_t s = 0; s < strips; ++s) {
            const int64_t m = rows * s / strips, height = rows * (s + 1) / strips - m;
            const float* from = x + (m0 + m) * product.stride + b0 * kBlock<Avx2>;
            if (height == 1) micro_tile<1>(weights, b1 - b0, from, product.stride, tile_acc + m);
            if (height == 2) micro_tile<2>(weights, b1 - b0, from, product.stride, tile_acc + m);
            if (height == 3) micro_tile<3>(weights, b1 - b0, from, product.stride, tile_acc + m);
          }
        }
      }
      for (int64_t n = p0; n < p1; n += kTile) {
        const __m128 bias = tile_bias<Avx2>(layer, n);
        for (int64_t m = 0; m < rows; ++m)
          store_sums(layer, product, m0 + m, n, acc[(n - p0) / kTile * rows + m], bias);
      }
    }
  }
}

void fused_or_tiled(const W4Layer& layer, const W4Product& product, int64_t begin, int64_t end,
                    void* scratch) {
  if (block_parts<Avx2>(layer) == 0) return tiled(layer, product, begin, end, scratch);
  fused(layer, product, begin, end, scratch);
}

/// Rows lie as far apart as a pass is deep, modulo the 4096 bytes after which cache sets repeat, so that the
/// pieces of neighbouring rows lie in different ones.
int64_t row_stride(int64_t in_features) {
  constexpr int64_t kSets = 4096 / sizeof(float);
  const int64_t padded = round_up(in_features, kBlock<Avx2>);
  return padded + ((kDepth - padded) % kSets + kSets) % kSets;
}

}  // namespace

const W4Kernel kW4Avx2 = {"avx2",     Float::f32, kBlock<Avx2>,  true,           kFusedRows, kTiledRows,
                          row_stride, pack_input, scratch_bytes, fused_or_tiled, tiled,      nullptr};

}  // namespace tarq
#endif
