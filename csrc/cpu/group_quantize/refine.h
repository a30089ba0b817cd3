// Scales and codes refined under H, group after group: a group's scale is fitted to its codes, then each of
// its codes moves to its best value while all others stand still. See vectors.h; `reference.refine` is the
// specification.
//
// The gradient E H of a group's columns is computed afresh, from the errors as they stand, when its turn
// comes: the product a pass cannot do without, and the whole of its cost but for what happens inside the
// group.
#pragma once

#include "cpu/group_quantize/scales.h"

namespace tarq::TARQ_ISA {
namespace {

// Panel p holds columns [p·kPanel, (p+1)·kPanel) of all n rows.
template <typename T>
int64_t packed_square_size(int64_t n) {
  return floor_to(n + kPanel - 1, kPanel) * n;
}

template <typename T>
void pack_square(const T* matrix, int64_t n, int64_t chunk, T* packed) {
  const int64_t end = smaller((chunk + 1) * 64, floor_to(n + kPanel - 1, kPanel));
  for (int64_t i = 0; i < n; ++i)
    for (int64_t first = chunk * 64; first < end; first += kPanel)
      for (int64_t j = 0; j < kPanel; ++j)
        packed[first * n + i * kPanel + j] = first + j < n ? matrix[i * n + first + j] : T(0);
}

// One tile's part of the workspace.
template <typename T>
struct RefinedTile {
  T* errors;                // [columns, kTile]: E
  T* levels;                // [columns, kTile]: codes less zero points
  T* feedback;              // [span, kTile]: E H of the group's columns
  T* product;               // [span, kTile]: levels H of the group alone; then the changes of its weights
  T* scales;                // [groups, kTile]
  T* zeros;                 // [groups, kTile]
  double change[kTile<T>];  // of the loss
};

template <typename T>
int64_t refine_workspace_size(int64_t columns, int64_t group_size, int64_t tiles) {
  const int64_t groups = (columns + group_size - 1) / group_size;
  const int64_t slots = 2 * columns + 2 * (smaller(columns, group_size) + 2 * kPanel) + 2 * groups;
  return smaller(tiles, kTilesTogether) * slots * kTile<T>;
}

// The scale with the least loss given the group's codes, and E and E H after it.
template <typename T>
void refit_scale(const Refinement<T>& layer, RefinedTile<T>& tile, int64_t group, int64_t begin,
                 int64_t end) {
  constexpr int64_t width = Simd<T>::kWidth;
  const int64_t base = floor_to(begin, kPanel);
  T* gradient = tile.feedback - base * kTile<T>;
  T* product = tile.product - base * kTile<T>;
  Vec<T> curvature[kVectors] = {}, slope[kVectors] = {}, step[kVectors];
  for (int64_t first = base; first < end; first += kPanel) {
    Accumulators<T> acc = {};
    multiply(layer.packed + first * layer.columns + begin * kPanel, tile.levels + begin * kTile<T>,
             end - begin, acc);
#pragma GCC unroll 8
    for (int j = 0; j < kPanel; ++j) {
      if (first + j < begin || first + j >= end) continue;
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) {
        const int64_t at = (first + j) * kTile<T> + v * width;
        const Vec<T> level = load(tile.levels + at);
        curvature[v] += level * acc[j][v];
        slope[v] += level * load(gradient + at);
        store<T>(product + at, acc[j][v]);
      }
    }
  }
  const Vec<T> nought = {}, least = splat(T(layer.lattice.least_scale));
  const Vec<T> largest = splat(T(layer.lattice.largest_scale / layer.lattice.reach));
  for (int v = 0; v < kVectors; ++v) {
    T* scale = tile.scales + group * kTile<T> + v * width;
    const Vec<T> before = load(scale), wanted = before + slope[v] / curvature[v];
    // A group whose levels are all zero has no say; what is no number compares as false.
    const auto usable = (curvature[v] > nought) & (wanted >= least) & (wanted <= largest);
    const Vec<T> rounded = stored<T>(usable ? wanted : before, layer.lattice);
    const Vec<T> delta = rounded - before, change = delta * (delta * curvature[v] - T(2) * slope[v]);
    const auto better = usable & (rounded <= largest) & (change < nought);
    step[v] = better ? delta : nought;
    store<T>(scale, better ? rounded : before);
    for (int64_t lane = 0; lane < width; ++lane)
      tile.change[v * width + lane] += better[lane] ? change[lane] : T(0);
  }
  for (int64_t j = begin; j < end; ++j)
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = j * kTile<T> + v * width;
      store<T>(gradient + at, load(gradient + at) - step[v] * load(product + at));
      store<T>(tile.errors + at, load(tile.errors + at) - step[v] * load(tile.levels + at));
    }
}

// Every code of the group at its best in turn: the nearest to level + (E H)_j / (s H_jj), with E as the
// changes before column j have left it. Those follow one another as the errors of the sweep do.
template <typename T>
void descend(const Refinement<T>& layer, RefinedTile<T>& tile, int64_t group, int64_t begin, int64_t end) {
  constexpr int64_t width = Simd<T>::kWidth;
  const int64_t base = floor_to(begin, kPanel);
  const T* gradient = tile.feedback - base * kTile<T>;
  T* changes = tile.product - base * kTile<T>;
  const Vec<T> nought = {}, top = splat(T(layer.lattice.max_code));
  Vec<T> scale[kVectors], low[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    scale[v] = load(tile.scales + group * kTile<T> + v * width);
    low[v] = nought - load(tile.zeros + group * kTile<T> + v * width);
  }
  for (int64_t first = base; first < end; first += kPanel) {
    Accumulators<T> acc = {};
    Vec<T> change[kVectors] = {};
    walk_panel<T>(layer.packed + first * layer.columns, changes, first, begin, larger(first, begin),
                  smaller(first + kPanel, end), acc,
                  [&](int j, int v, T curvature, Vec<T> sum, const T*) __attribute__((always_inline)) {
                    const int64_t at = (first + j) * kTile<T> + v * width;
                    const Vec<T> slope = load(gradient + at) - sum, level = load(tile.levels + at);
                    const Vec<T> best =
                        round_within<T>(level + slope / (scale[v] * curvature), low[v], low[v] + top);
                    const Vec<T> moved = (best - level) * scale[v];
                    change[v] += moved * (moved * curvature - T(2) * slope);
                    store<T>(tile.levels + at, best);
                    store<T>(tile.errors + at, load(tile.errors + at) - moved);
                    return moved;
                  });
    for (int v = 0; v < kVectors; ++v)
      for (int64_t lane = 0; lane < width; ++lane) tile.change[v * width + lane] += change[v][lane];
  }
}

template <typename T>
void read_tile(const Refinement<T>& layer, RefinedTile<T>& tile, int64_t row, int64_t rows) {
  const int64_t n = layer.columns, groups = (n + layer.group_size - 1) / layer.group_size;
  const auto natural = [](int64_t j) { return j; };
  to_tile(layer.target + row * n, n, rows, n, natural, tile.errors);
  to_tile(layer.codes + row * n, n, rows, n, natural, tile.levels);
  for (int64_t group = 0; group < groups; ++group)
    for (int64_t r = 0; r < kTile<T>; ++r) {
      const int64_t from = (row + r) * groups + group;
      tile.scales[group * kTile<T> + r] = r < rows ? layer.scales[from] : T(1);
      tile.zeros[group * kTile<T> + r] = r < rows ? T(layer.zeros[from]) : T(0);
    }
  for (int64_t j = 0; j < n; ++j) {
    const int64_t slot = j / layer.group_size * kTile<T>;
    for (int64_t r = 0; r < kTile<T>; r += Simd<T>::kWidth) {
      T* at = tile.levels + j * kTile<T> + r;
      T* error = tile.errors + j * kTile<T> + r;
      const Vec<T> level = load(at) - load(tile.zeros + slot + r);
      store<T>(at, level);
      store<T>(error, load(error) - level * load(tile.scales + slot + r));
    }
  }
  for (double& change : tile.change) change = 0;
}

// Rows whose loss fell by more than rounding errors could make of it; the others stay as they were.
template <typename T>
void write_tile(const Refinement<T>& layer, const RefinedTile<T>& tile, int64_t row, int64_t rows) {
  const int64_t n = layer.columns, groups = (n + layer.group_size - 1) / layer.group_size;
  for (int64_t r = 0; r < rows; ++r) {
    double& loss = layer.loss[row + r];
    if (!(tile.change[r] < -kSlack<T> * loss)) continue;
    loss = loss + tile.change[r] > 0 ? loss + tile.change[r] : 0;  // next to nothing may be left
    for (int64_t group = 0; group < groups; ++group) {
      layer.scales[(row + r) * groups + group] = tile.scales[group * kTile<T> + r];
      const T zero = tile.zeros[group * kTile<T> + r];
      for (int64_t j = group * layer.group_size; j < smaller((group + 1) * layer.group_size, n); ++j)
        layer.codes[(row + r) * n + j] = static_cast<uint8_t>(tile.levels[j * kTile<T> + r] + zero);
    }
  }
}

template <typename T>
void refine_together(const Refinement<T>& layer, int64_t first_tile, int64_t count, T* workspace) {
  const int64_t n = layer.columns, groups = (n + layer.group_size - 1) / layer.group_size;
  const int64_t span = (smaller(n, layer.group_size) + 2 * kPanel) * kTile<T>;
  RefinedTile<T> tiles[kTilesTogether];
  for (int64_t t = 0; t < count; ++t) {
    RefinedTile<T>& tile = tiles[t];
    tile.errors = workspace;
    tile.levels = tile.errors + n * kTile<T>;
    tile.feedback = tile.levels + n * kTile<T>;
    tile.product = tile.feedback + span;
    tile.scales = tile.product + span;
    tile.zeros = tile.scales + groups * kTile<T>;
    workspace = tile.zeros + groups * kTile<T>;
    const int64_t row = (first_tile + t) * kTile<T>;
    read_tile(layer, tile, row, smaller(kTile<T>, layer.rows - row));
  }
  for (int64_t pass = 0; pass < layer.passes; ++pass)
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t begin = group * layer.group_size, end = smaller(begin + layer.group_size, n);
      sum_span<T>(tiles, count, floor_to(begin, kPanel), end, n,
                  [&](int64_t first) { return layer.packed + first * n; });
      for (int64_t t = 0; t < count; ++t) {
        refit_scale(layer, tiles[t], group, begin, end);
        descend(layer, tiles[t], group, begin, end);
      }
    }
  for (int64_t t = 0; t < count; ++t) {
    const int64_t row = (first_tile + t) * kTile<T>;
    write_tile(layer, tiles[t], row, smaller(kTile<T>, layer.rows - row));
  }
}

template <typename T>
void refine(const Refinement<T>& layer, int64_t begin, int64_t end, T* workspace) {
  for (int64_t tile = begin; tile < end; tile += kTilesTogether)
    refine_together(layer, tile, smaller(kTilesTogether, end - tile), workspace);
}

}  // namespace
}  // namespace tarq::TARQ_ISA
