// The kernel's loops, written once over a description `S` of an instruction set. Included by one source file
// per instruction set, after its `#pragma GCC target`; everything is in an anonymous namespace, so that no
// function compiled for a newer instruction set can be linked into another file.
//
// S has
//   Vector   sums of `panel` columns;  Step: one column of one step, a float or (`pairs`) two bf16
//   panel;  depth, at which three panels stay in the L1 cache
//   zero, get, put, add of sums;  load, splat, dot of steps
//   pack_step(rows, row, next, column, to)   one step of one panel: `row`, and of pairs the `next` one
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/gram/gram.h"

namespace tarq {
namespace {

constexpr int kPanels = 3;

inline int64_t row_of(const GramRows& rows, int64_t position) {
  return rows.index ? rows.index[position] : position;
}

inline float weighted(const GramRows& rows, int64_t row, int64_t column) {
  float value = read(rows.data, rows.type, row * rows.stride + column);
  if (rows.origin) value -= read(rows.origin, rows.type, row * rows.origin_stride + column);
  return rows.weight ? value * rows.weight[row] : value;
}

inline uint16_t raw_bf16(const GramRows& rows, int64_t row, int64_t column) {
  return static_cast<const uint16_t*>(rows.data)[row * rows.stride + column];
}

/// What a description of fp32 steps says of them beside its vectors `V`, which have load, splat, put,
/// multiply, subtract and `from_half(from, type)`: fp16 or bf16 to fp32.
template <class V>
struct FloatSteps : V {
  using Step = float;
  static constexpr bool pairs = false;

  static typename V::Vector load_any(const void* data, Float type, int64_t at) {
    return type == Float::f32 ? V::load(static_cast<const float*>(data) + at)
                              : V::from_half(static_cast<const uint16_t*>(data) + at, type);
  }

  static void pack_step(const GramRows& rows, int64_t row, int64_t, int64_t column, float* to) {
    auto v = load_any(rows.data, rows.type, row * rows.stride + column);
    if (rows.origin) v = V::subtract(v, load_any(rows.origin, rows.type, row * rows.origin_stride + column));
    V::put(to, rows.weight ? V::multiply(v, V::splat(rows.weight[row])) : v);
  }
};

template <class S>
constexpr int64_t kPositionsPerStep = S::pairs ? 2 : 1;

template <class S>
int64_t steps_of(int64_t positions) {
  return (positions + kPositionsPerStep<S> - 1) / kPositionsPerStep<S>;
}

template <class S>
int64_t panel_bytes(int64_t positions) {
  return steps_of<S>(positions) * S::panel * int64_t(sizeof(typename S::Step));
}

/// Columns past the last are zeros, and so is the second position of a last step that lacks it.
template <class S>
void pack(const GramRows& rows, int64_t first, int64_t positions, int64_t begin, int64_t end, void* left,
          void* right) {
  void* const out = left ? left : right;  // the same, if both are wanted
  using Step = typename S::Step;
  const int64_t steps = steps_of<S>(positions);
  for (int64_t p = begin; p < end; ++p) {
    Step* to = static_cast<Step*>(out) + p * steps * S::panel;
    const int64_t column = p * S::panel;
    const bool whole = column + S::panel <= rows.columns;
    for (int64_t s = 0; s < steps; ++s, to += S::panel) {
      const int64_t t = first + s * kPositionsPerStep<S>;
      const int64_t row = row_of(rows, t);
      if constexpr (S::pairs) {
        const bool both = s * 2 + 1 < positions;
        const int64_t next = both ? row_of(rows, t + 1) : row;
        if (whole && both) {
          S::pack_step(rows, row, next, column, to);
        } else {
          for (int64_t c = 0; c < S::panel; ++c) {
            const bool inside = column + c < rows.columns;
            const uint32_t low = inside ? raw_bf16(rows, row, column + c) : 0;
            const uint32_t high = inside && both ? raw_bf16(rows, next, column + c) : 0;
            to[c] = low | high << 16;
          }
        }
      } else if (whole) {
        S::pack_step(rows, row, row, column, to);
      } else {
        for (int64_t c = 0; c < S::panel; ++c)
          to[c] = column + c < rows.columns ? weighted(rows, row, column + c) : 0.0f;
      }
    }
  }
}

/// The first `count` of a vector's sums, out of line: the last columns only.
__attribute__((noinline)) inline void put_some(float* to, const float* sums, int64_t count, bool add) {
  for (int64_t c = 0; c < count; ++c) to[c] = (add ? to[c] : 0.0f) + sums[c];
}

/// panel/2 rows by 3 panels of the product.
template <class S>
void rectangle(const GramProduct& product, int64_t row, int64_t j) {
  using Step = typename S::Step;
  using Vector = typename S::Vector;
  constexpr int height = S::panel / 2;
  const int64_t steps = steps_of<S>(product.positions), panel_size = steps * S::panel;
  const Step* left = static_cast<const Step*>(product.left) + row / S::panel * panel_size + row % S::panel;
  const Step* right = static_cast<const Step*>(product.right) + kPanels * j * panel_size;
  const int64_t last_panel = (product.columns - 1) / S::panel;
  // Past the last panel its vectors are read again; their sums are not stored.
  const Step* rights[kPanels];
  for (int p = 0; p < kPanels; ++p)
    rights[p] = kPanels * j + p <= last_panel ? right + p * panel_size : right;

  // Prefetch what the sums are added to while they are computed: each row is in another page.
  const int64_t column = kPanels * j * S::panel;
  float* const out = product.out + row * product.columns + column;
  constexpr int64_t kLine = 64 / sizeof(float);
#pragma GCC unroll 8
  for (int r = 0; r < height; ++r)
#pragma GCC unroll 4
    for (int64_t c = 0; c < kPanels * S::panel; c += kLine)
      __builtin_prefetch(out + r * product.columns + c, 1);

  Vector sums[height][kPanels];
#pragma GCC unroll 8
  for (int r = 0; r < height; ++r)
#pragma GCC unroll 3
    for (int p = 0; p < kPanels; ++p) sums[r][p] = S::zero();
  for (int64_t s = 0; s < steps; ++s) {
    decltype(S::load(right)) x[kPanels];
#pragma GCC unroll 3
    for (int p = 0; p < kPanels; ++p) x[p] = S::load(rights[p] + s * S::panel);
#pragma GCC unroll 8
    for (int r = 0; r < height; ++r) {
      const auto y = S::splat(left[s * S::panel + r]);
#pragma GCC unroll 3
      for (int p = 0; p < kPanels; ++p) sums[r][p] = S::dot(sums[r][p], y, x[p]);
    }
  }

#pragma GCC unroll 8
  for (int r = 0; r < height; ++r) {
    if (row + r >= product.rows) return;
    float* to = out + r * product.columns;
#pragma GCC unroll 3
    for (int p = 0; p < kPanels; ++p) {
      const int64_t left_over = product.columns - column - p * S::panel;
      if (left_over >= S::panel) {
        S::put(to + p * S::panel, product.add ? S::add(S::get(to + p * S::panel), sums[r][p]) : sums[r][p]);
      } else if (left_over > 0) {
        float values[S::panel];
        S::put(values, sums[r][p]);
        put_some(to + p * S::panel, values, left_over, product.add);
      }
    }
  }
}

template <class S>
void multiply(const GramProduct& product, int64_t j, int64_t begin, int64_t end) {
  constexpr int64_t height = S::panel / 2;
  int64_t row = begin;
  if (product.triangle) {  // rows above the columns' first lie above the diagonal
    const int64_t diagonal = kPanels * j * S::panel;
    if (row < diagonal) row = diagonal;
  }
  for (; row < end; row += height) rectangle<S>(product, row, j);
}

template <class S>
constexpr GramKernel make_gram_kernel(const char* isa) {
  return {.isa = isa,
          .panel = S::panel,
          .width = kPanels,
          .depth = S::depth,
          .rows_per_task = 512,
          .two_layouts = false,
          .left_bytes = panel_bytes<S>,
          .right_bytes = panel_bytes<S>,
          .pack = pack<S>,
          .multiply = multiply<S>};
}

}  // namespace
}  // namespace tarq
