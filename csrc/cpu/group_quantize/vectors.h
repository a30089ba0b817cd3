// Vectors, and the product that group_quantize rests on. Its headers are compiled once per instruction set:
// the including file sets the target, then
//   TARQ_ISA           name of the instruction set, used as a namespace
//   TARQ_VECTOR_BYTES  width of a vector register
//   TARQ_PANEL         columns of L per panel: TARQ_PANEL × 3 accumulators stay in registers
// Only GCC vector extensions are used, so that one source serves every instruction set, and no template of
// the standard library: an inline copy of it made for AVX-512 could be the one the linker keeps for all.
//
// Everything rests on one product, a panel of L (TARQ_PANEL columns wide, packed row by row) times a tile of
// errors (kTile weight rows wide, stored transposed, column by column):
//
//        i  ┌─ panel of L ─┐      ┌──── tile of E ────┐
//        ↓  │ L[i, p…p+7]  │      │ e[i, r … r+47]    │     acc[p+j, r] += L[i, p+j] · e[i, r]
//
// The sweep reads L from the left: column j needs only the errors of the columns before it.
#pragma once

#include "cpu/group_quantize/group_quantize.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed between inlined functions only

namespace tarq::TARQ_ISA {
namespace {

#define TARQ_INLINE __attribute__((always_inline)) inline

constexpr int64_t kPanel = TARQ_PANEL;
constexpr int kVectors = 3;
constexpr int64_t kFactorBlock = 192;  // its tile of 48 columns fills three quarters of a 48 KB L1
constexpr int64_t kDepth = 128;        // rows of E that stay in L1 while every panel passes over them
constexpr int64_t kOrderedSpan = 128;  // columns prepared together when there are no groups to respect
constexpr int64_t kTilesTogether = 4;  // tiles that share one pass over L
constexpr int kShrinks = 36;           // the grid of the mse rule: 1.00, 0.98 … 0.30
constexpr double kShrinkStep = 0.02;

// A change of a row's loss below this share of it may be a rounding error.
template <typename T>
constexpr double kSlack = sizeof(T) == sizeof(float) ? 1e-4 : 1e-10;

template <typename T>
struct Simd;

template <>
struct Simd<float> {
  static constexpr int64_t kWidth = TARQ_VECTOR_BYTES / sizeof(float);
  typedef float Vector __attribute__((vector_size(TARQ_VECTOR_BYTES)));
  typedef float Loose __attribute__((vector_size(TARQ_VECTOR_BYTES), aligned(4), may_alias));
  typedef float Single __attribute__((vector_size(TARQ_VECTOR_BYTES)));
  typedef int32_t Bits __attribute__((vector_size(TARQ_VECTOR_BYTES)));
  static constexpr float kRound = 12582912.0f;  // 1.5 · 2²³: adding it drops the fraction, ties to even
};

template <>
struct Simd<double> {
  static constexpr int64_t kWidth = TARQ_VECTOR_BYTES / sizeof(double);
  typedef double Vector __attribute__((vector_size(TARQ_VECTOR_BYTES)));
  typedef double Loose __attribute__((vector_size(TARQ_VECTOR_BYTES), aligned(8), may_alias));
  typedef float Single __attribute__((vector_size(TARQ_VECTOR_BYTES / 2)));
  typedef int32_t Bits __attribute__((vector_size(TARQ_VECTOR_BYTES / 2)));
  static constexpr double kRound = 6755399441055744.0;  // 1.5 · 2⁵²
};

template <typename T>
using Vec = typename Simd<T>::Vector;
template <typename T>
constexpr int64_t kTile = kVectors * Simd<T>::kWidth;
static_assert(kTile<float> % kPanel == 0 && kTile<double> % kPanel == 0, "a tile is cut into whole panels");
static_assert(kFactorBlock % kTile<float> == 0 && kFactorBlock % kTile<double> == 0,
              "and a block into tiles");
template <typename T>
using Accumulators = Vec<T>[kPanel][kVectors];

template <typename T>
TARQ_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::Loose*>(p);
}
template <typename T>
TARQ_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename Simd<T>::Loose*>(p) = v;
}
template <typename T>
TARQ_INLINE Vec<T> splat(T x) {
  return x - Vec<T>{};
}
template <typename V>
TARQ_INLINE V lesser(V a, V b) {
  return a < b ? a : b;
}
template <typename V>
TARQ_INLINE V greater(V a, V b) {
  return a > b ? a : b;
}
TARQ_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
TARQ_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
TARQ_INLINE int64_t floor_to(int64_t a, int64_t step) { return a / step * step; }

// Round to an integer in [low, high], ties to even (as torch.round). Clamped first: it needs |x| < 2²².
template <typename T>
TARQ_INLINE Vec<T> round_within(Vec<T> x, Vec<T> low, Vec<T> high) {
  return (lesser(greater(x, low), high) + Simd<T>::kRound) - Simd<T>::kRound;
}

// --- the product ---

// acc[j][r] += Σ_k panel[k][j] · tile[k][r]
template <typename T>
TARQ_INLINE void multiply(const T* panel, const T* tile, int64_t depth, Accumulators<T>& acc) {
  constexpr int64_t width = Simd<T>::kWidth;
  for (int64_t k = 0; k < depth; ++k, panel += kPanel, tile += kTile<T>) {
    const Vec<T> e0 = load(tile), e1 = load(tile + width), e2 = load(tile + 2 * width);
#pragma GCC unroll 8
    for (int j = 0; j < kPanel; ++j) {
      const Vec<T> l = splat(panel[j]);
      acc[j][0] += l * e0;
      acc[j][1] += l * e1;
      acc[j][2] += l * e2;
    }
  }
}

template <typename T>
TARQ_INLINE void load_accumulators(const T* from, Accumulators<T>& acc) {
#pragma GCC unroll 8
  for (int j = 0; j < kPanel; ++j)
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) acc[j][v] = load(from + j * kTile<T> + v * Simd<T>::kWidth);
}

// For a span's columns from `base` (a panel's first) to `end`: feedback = Σ_{k < depth} errors[k] · L[k,
// column] of each tile. `panel(first)` is where the panel whose first column is `first` is packed; all tiles
// share one pass over it.
template <typename T, typename Tile, typename Panel>
TARQ_INLINE void sum_span(Tile* tiles, int64_t count, int64_t base, int64_t end, int64_t depth, Panel panel) {
  for (int64_t t = 0; t < count; ++t)
    for (int64_t i = 0; i < (floor_to(end + kPanel - 1, kPanel) - base) * kTile<T>; ++i)
      tiles[t].feedback[i] = 0;
  for (int64_t k = 0; k < depth; k += kDepth)
    for (int64_t t = 0; t < count; ++t)
      for (int64_t first = base; first < end; first += kPanel) {
        T* feedback = tiles[t].feedback + (first - base) * kTile<T>;
        Accumulators<T> acc;
        load_accumulators(feedback, acc);
        multiply(panel(first) + k * kPanel, tiles[t].errors + k * kTile<T>, smaller(kDepth, depth - k), acc);
#pragma GCC unroll 8
        for (int j = 0; j < kPanel; ++j)
#pragma GCC unroll 3
          for (int v = 0; v < kVectors; ++v)
            store<T>(feedback + j * kTile<T> + v * Simd<T>::kWidth, acc[j][v]);
      }
}

// Walk columns [begin, end) of the panel whose first column is `first`. On entry acc holds what lies before
// column `from`; errors from there on are in `tile`. For vector v of column first + j, `finish(j, v, L_jj,
// sum, place)` turns Σ_{i<j} e_i L_ij and what is at its place in the tile into the column's error, which is
// then put there and passed on to the columns behind it.
template <typename T, typename Finish>
TARQ_INLINE void walk_panel(const T* panel, T* tile, int64_t first, int64_t from, int64_t begin, int64_t end,
                            Accumulators<T>& acc, Finish finish) {
  multiply(panel + from * kPanel, tile + from * kTile<T>, begin - from, acc);
#pragma GCC unroll 8
  for (int j = 0; j < kPanel; ++j) {
    const int64_t column = first + j;
    if (column < begin || column >= end) continue;
    const T* l = panel + column * kPanel;
    T* errors = tile + column * kTile<T>;
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      const Vec<T> error = finish(j, v, l[j], acc[j][v], errors + v * Simd<T>::kWidth);
      store(errors + v * Simd<T>::kWidth, error);
#pragma GCC unroll 8
      for (int k = j + 1; k < kPanel; ++k) acc[k][v] += error * l[k];
    }
  }
}

// Transpose between a tile (one column every kTile) and rows of a matrix, `stride` apart; `index(j)` is the
// matrix column of tile column j. Sixteen columns at a time: rows of 5,120 floats all fall into the same few
// sets of the L1 cache, so a walk down one column after another would miss it every time.
template <typename T, typename From, typename Index>
TARQ_INLINE void to_tile(const From* rows, int64_t stride, int64_t row_count, int64_t columns, Index index,
                         T* tile) {
  for (int64_t start = 0; start < columns; start += 16)
    for (int64_t r = 0; r < kTile<T>; ++r)
      for (int64_t j = start; j < smaller(start + 16, columns); ++j)
        tile[j * kTile<T> + r] = r < row_count ? T(rows[r * stride + index(j)]) : T(0);
}
template <typename T, typename Index>
TARQ_INLINE void from_tile(const T* tile, int64_t stride, int64_t columns, Index index, T* rows) {
  for (int64_t start = 0; start < columns; start += 16)
    for (int64_t r = 0; r < kTile<T>; ++r)
      for (int64_t j = start; j < smaller(start + 16, columns); ++j)
        rows[r * stride + index(j)] = tile[j * kTile<T> + r];
}
}  // namespace
}  // namespace tarq::TARQ_ISA
