// The sweep over the columns, and L as packed for it. See vectors.h.
#pragma once

#include "cpu/group_quantize/scales.h"

namespace tarq::TARQ_ISA {
namespace {

// --- packing L ---

// Panel p holds columns [p·kPanel, (p+1)·kPanel) of rows 0 … (p+1)·kPanel − 1; panels follow one another.
TARQ_INLINE int64_t panel_offset(int64_t panel) { return kPanel * kPanel * (panel * (panel + 1) / 2); }

constexpr int64_t kPanelsPerChunk = 64 / kPanel;

template <typename T>
int64_t packed_size(int64_t n) {
  return panel_offset((n + kPanel - 1) / kPanel);
}

template <typename T>
int64_t pack_chunks(int64_t n) {
  return (n + 63) / 64;
}

template <typename T>
void pack(const T* upper, int64_t n, int64_t chunk, T* packed) {
  const int64_t end = smaller((chunk + 1) * 64, floor_to(n + kPanel - 1, kPanel));
  for (int64_t i = 0; i < end; ++i)
    for (int64_t p = larger(chunk * kPanelsPerChunk, i / kPanel); p < end / kPanel; ++p) {
      T* to = packed + panel_offset(p) + i * kPanel;
      for (int64_t j = 0; j < kPanel; ++j) {
        const int64_t column = p * kPanel + j;
        to[j] = i <= column && column < n ? upper[i * n + column] : T(i == column);
      }
    }
}

// --- the sweep ---

// One tile's part of the workspace.
template <typename T>
struct Tile {
  T* errors;    // [columns, kTile]: weights not yet visited, then their errors
  T* feedback;  // [span, kTile]: Σ errors before the span · L, for the span's columns
  T* mean;      // [span, kTile]: the conditional mean of the group's weights
  T* trial;     // [columns of the span, kTile]: the same recursion's "errors", kept apart
  T* scales;    // [groups, kTile]
  T* zeros;     // [groups, kTile]
  double loss[kTile<T>];
};

TARQ_INLINE int64_t span_slots(int64_t columns, int64_t group_size) {
  return smaller(columns, larger(group_size, kOrderedSpan)) + 2 * kPanel;
}

template <typename T>
int64_t workspace_size(int64_t columns, int64_t group_size, int64_t tiles) {
  const int64_t groups = (columns + group_size - 1) / group_size;
  const int64_t slots = columns + kPanel + 3 * span_slots(columns, group_size) + 2 * groups;
  return smaller(tiles, kTilesTogether) * slots * kTile<T>;
}

template <typename T>
void group_scale(const Tile<T>& tile, const T* weights, int64_t group, int64_t count,
                 const Lattice& lattice) {
  for (int64_t r = 0; r < kTile<T>; r += Simd<T>::kWidth)
    choose_scale(weights + r, count, lattice, tile.scales + group * kTile<T> + r,
                 tile.zeros + group * kTile<T> + r);
}

// The group's weights where its remaining error would be least, given the errors so far: the sweep's
// recursion without rounding, w_j + Σ_{i<j} e_i L_ij / L_jj with every e_i = w_i − that.
template <typename T>
void conditional_mean(const Sweep<T>& layer, const Tile<T>& tile, int64_t begin, int64_t end) {
  const int64_t base = floor_to(begin, kPanel);
  T* trial = tile.trial - base * kTile<T>;
  for (int64_t first = base; first < end; first += kPanel) {
    Accumulators<T> acc;
    load_accumulators(tile.feedback + (first - base) * kTile<T>, acc);
    walk_panel<T>(layer.packed + panel_offset(first / kPanel), trial, first, begin, larger(first, begin),
                  smaller(first + kPanel, end), acc,
                  [](int, int, T pivot, Vec<T> sum, const T*)
                      __attribute__((always_inline)) { return -sum / pivot; });
  }
  for (int64_t j = begin; j < end; ++j)
    for (int64_t r = 0; r < kTile<T>; r += Simd<T>::kWidth)
      store<T>(tile.mean + (j - begin) * kTile<T> + r,
               load(tile.errors + j * kTile<T> + r) - load(trial + j * kTile<T> + r));
}

template <typename T>
void quantize_span(const Sweep<T>& layer, Tile<T>& tile, int64_t row, int64_t begin, int64_t end) {
  constexpr int64_t width = Simd<T>::kWidth;
  const int64_t base = floor_to(begin, kPanel);
  const int64_t rows = smaller(kTile<T>, layer.rows - row);
  const Vec<T> nought = {}, top = splat(T(layer.lattice.max_code));
  T codes[kPanel][kTile<T>];
  for (int64_t first = base; first < end; first += kPanel) {
    const int64_t from = larger(first, begin), to = smaller(first + kPanel, end);
    int64_t columns[kPanel], slots[kPanel] = {};
    for (int64_t j = from - first; j < to - first; ++j) {
      columns[j] = layer.order ? layer.order[first + j] : first + j;
      slots[j] = columns[j] / layer.group_size * kTile<T>;
    }
    Accumulators<T> acc;
    Vec<T> lost[kVectors] = {};
    load_accumulators(tile.feedback + (first - base) * kTile<T>, acc);
    walk_panel<T>(layer.packed + panel_offset(first / kPanel), tile.errors, first, begin, from, to, acc,
                  [&](int j, int v, T pivot, Vec<T> sum, const T* value) __attribute__((always_inline)) {
                    const Vec<T> w = load(value);
                    const Vec<T> scale = load(tile.scales + slots[j] + v * width);
                    const Vec<T> zero = load(tile.zeros + slots[j] + v * width);
                    const Vec<T> level =
                        round_within<T>((w + sum / pivot) / scale, nought - zero, top - zero);
                    const Vec<T> error = w - level * scale;
                    const Vec<T> residual = error * pivot + sum;
                    lost[v] += residual * residual;
                    store<T>(codes[j] + v * width, level + zero);
                    return error;
                  });
    for (int v = 0; v < kVectors; ++v)
      for (int64_t lane = 0; lane < width; ++lane) tile.loss[v * width + lane] += lost[v][lane];
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = from - first; j < to - first; ++j)
        layer.codes[(row + r) * layer.columns + columns[j]] = static_cast<uint8_t>(codes[j][r]);
  }
}

template <typename T>
void sweep_together(const Sweep<T>& layer, int64_t first_tile, int64_t count, T* workspace) {
  const int64_t n = layer.columns, groups = (n + layer.group_size - 1) / layer.group_size;
  const int64_t slots = span_slots(n, layer.group_size) * kTile<T>;
  Tile<T> tiles[kTilesTogether];
  for (int64_t t = 0; t < count; ++t) {
    Tile<T>& tile = tiles[t];
    const int64_t row = (first_tile + t) * kTile<T>, rows = smaller(kTile<T>, layer.rows - row);
    tile.errors = workspace;
    tile.feedback = tile.errors + (n + kPanel) * kTile<T>;
    tile.mean = tile.feedback + slots;
    tile.trial = tile.mean + slots;
    tile.scales = tile.trial + slots;
    tile.zeros = tile.scales + groups * kTile<T>;
    workspace = tile.zeros + groups * kTile<T>;
    for (double& loss : tile.loss) loss = 0;
    const T* weights = layer.weight + row * n;
    if (layer.order)
      to_tile(weights, n, rows, n, [&](int64_t j) { return layer.order[j]; }, tile.errors);
    else
      to_tile(weights, n, rows, n, [](int64_t j) { return j; }, tile.errors);
    // Static order: every scale comes from the original weights of its natural group.
    for (int64_t group = 0; layer.order && group < groups; ++group) {
      const int64_t begin = group * layer.group_size, size = smaller(layer.group_size, n - begin);
      for (int64_t j = 0; j < size; ++j)
        for (int64_t r = 0; r < kTile<T>; r += Simd<T>::kWidth)
          store<T>(tile.mean + j * kTile<T> + r,
                   load(tile.errors + layer.position[begin + j] * kTile<T> + r));
      group_scale(tile, tile.mean, group, size, layer.lattice);
    }
  }

  const int64_t span = layer.order ? kOrderedSpan : layer.group_size;
  for (int64_t begin = 0; begin < n; begin += span) {
    const int64_t end = smaller(begin + span, n), base = floor_to(begin, kPanel);
    sum_span<T>(tiles, count, base, end, begin,
                [&](int64_t first) { return layer.packed + panel_offset(first / kPanel); });
    for (int64_t t = 0; t < count; ++t) {
      if (!layer.order) {
        conditional_mean(layer, tiles[t], begin, end);
        group_scale(tiles[t], tiles[t].mean, begin / span, end - begin, layer.lattice);
      }
      quantize_span(layer, tiles[t], (first_tile + t) * kTile<T>, begin, end);
    }
  }

  for (int64_t t = 0; t < count; ++t) {
    const int64_t row = (first_tile + t) * kTile<T>, rows = smaller(kTile<T>, layer.rows - row);
    for (int64_t r = 0; r < rows; ++r) {
      layer.loss[row + r] = tiles[t].loss[r];
      for (int64_t group = 0; group < groups; ++group) {
        layer.scales[(row + r) * groups + group] = tiles[t].scales[group * kTile<T> + r];
        layer.zeros[(row + r) * groups + group] = static_cast<uint8_t>(tiles[t].zeros[group * kTile<T> + r]);
      }
    }
  }
}

template <typename T>
void sweep(const Sweep<T>& layer, int64_t begin, int64_t end, T* workspace) {
  for (int64_t tile = begin; tile < end; tile += kTilesTogether)
    sweep_together(layer, tile, smaller(kTilesTogether, end - tile), workspace);
}

}  // namespace
}  // namespace tarq::TARQ_ISA
