// How a packed layer maps to a vector's lanes: blocks, groups, the rows of a tile. Shared by the loops of
// fused.h, tiled.h and int8_engine.h, which are written once over a description `S` of an instruction set
// (see engine.h).
//
// Included by one source file per instruction set, after its `#pragma GCC target`; everything is in an
// anonymous namespace, so that no function compiled for a newer instruction set can be linked into another
// file.
#pragma once

#include <cstdint>

#include "cpu/float.h"
#include "cpu/w4_linear/w4_linear.h"

namespace tarq {
namespace {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

template <class S>
constexpr int64_t kBlock = 8 * S::lanes;

/// How blocks and groups meet: `parts` groups in a block, each in lanes of its own (1: a block lies in one
/// group). Where neither divides, every lane counts as a part; 0: a lane would hold several groups.
template <class S>
int block_parts(const W4Layer& layer) {
  if (layer.groups == 1 || layer.group_size % kBlock<S> == 0) return 1;
  if (layer.group_size * 2 == kBlock<S> && S::lanes >= 2) return 2;
  if (layer.group_size * 4 == kBlock<S> && S::lanes >= 4) return 4;
  return layer.group_size % 8 == 0 ? S::lanes : 0;
}

template <class S>
int64_t padded_inputs(const W4Layer& layer) {
  return round_up(layer.in_features, kBlock<S>);
}

/// Blocks that lie in one group, where blocks lie in one.
template <class S>
int64_t blocks_of_group(const W4Layer& layer) {
  return (layer.groups == 1 ? padded_inputs<S>(layer) : layer.group_size) / kBlock<S>;
}

constexpr float kSymmetricZero = 8.0f;

/// Rows past the end repeat the last one; their results are not stored.
inline int64_t clamp_row(const W4Layer& layer, int64_t row) {
  return row < layer.out_features ? row : layer.out_features - 1;
}

/// Scales and zero points of a tile's rows in fp32, [kTile][groups of the padded row], so that the last block
/// needs no bounds. Where every lane is a part there is an entry for each word, `repeat` of them for a group.
struct TileGroups {
  float* scales;
  float* zeros;
  int64_t stride, repeat;

  template <class S>
  static bool by_word(const W4Layer& layer) {
    return S::lanes > 4 && block_parts<S>(layer) == S::lanes;
  }

  template <class S>
  static int64_t row_stride(const W4Layer& layer) {
    if (by_word<S>(layer)) return padded_inputs<S>(layer) / 8;
    return layer.groups == 1 ? 1 : ceil_div(padded_inputs<S>(layer), layer.group_size);
  }

  template <class S>
  static int64_t bytes(const W4Layer& layer) {
    const int64_t words = kTile * row_stride<S>(layer) + S::lanes, groups = kTile * layer.groups;
    return round_up(2 * (by_word<S>(layer) ? words + groups : words) * int64_t(sizeof(float)), 64);
  }

  template <class S>
  static TileGroups in(void* scratch, const W4Layer& layer) {
    const int64_t stride = row_stride<S>(layer), size = kTile * stride + S::lanes;
    float* scales = static_cast<float*>(scratch);
    const TileGroups groups{scales, scales + size, stride, by_word<S>(layer) ? layer.group_size / 8 : 1};
    for (int64_t i = 0; i < size; ++i) groups.scales[i] = 0.0f;
    for (int64_t i = 0; i < size; ++i) groups.zeros[i] = kSymmetricZero;
    return groups;
  }

  // Inlined: a call would cost a product of one row a fortieth of its time.
  template <class S>
  __attribute__((always_inline)) void read_rows(const W4Layer& layer, int64_t first_row) const {
    if (repeat == 1) return read_groups<S>(layer, first_row);
    read_words<S>(layer, first_row);
  }

 private:
  template <class S>
  __attribute__((always_inline)) void read_groups(const W4Layer& layer, int64_t first_row) const {
    if (stride == layer.groups && first_row + kTile <= layer.out_features) {
      S::to_float(layer.scales, layer.scale_type, first_row * stride, kTile * stride, scales);
    } else {
      for (int r = 0; r < kTile; ++r)
        S::to_float(layer.scales, layer.scale_type, clamp_row(layer, first_row + r) * layer.groups,
                    layer.groups, scales + r * stride);
    }
    if (!layer.zeros) return;
    for (int r = 0; r < kTile; ++r) {
      const int64_t row = clamp_row(layer, first_row + r);
      const uint32_t* words = layer.zeros + row / 8 * layer.groups;
      const int shift = 4 * (row % 8);
      for (int64_t g = 0; g < layer.groups; ++g) zeros[r * stride + g] = float(words[g] >> shift & 15);
    }
  }

  template <class S>
  __attribute__((noinline)) void read_words(const W4Layer& layer, int64_t first_row) const {
    float* const behind = zeros + kTile * stride + S::lanes;
    const TileGroups groups{behind, behind + kTile * layer.groups, layer.groups, 1};
    groups.read_groups<S>(layer, first_row);
    repeat_each<S>(groups.scales, layer.groups, scales);
    if (layer.zeros) repeat_each<S>(groups.zeros, layer.groups, zeros);
  }

  /// Whole vectors: what they write past a group's end is overwritten by the next group or row.
  template <class S>
  void repeat_each(const float* from, int64_t groups, float* to) const {
    for (int r = 0; r < kTile; ++r, to += stride)
      for (int64_t g = 0; g < groups; ++g) {
        const float value = *from++;
        const int64_t end = (g + 1) * repeat < stride ? (g + 1) * repeat : stride;
        for (int64_t w = g * repeat; w < end; w += S::lanes)
          for (int i = 0; i < S::lanes; ++i) to[w + i] = value;
      }
  }
};

/// How far ahead of the loads words are prefetched. Hardware prefetchers do not recognise a tile's rows as
/// one stream: without this a layer that is not in cache takes five times as long, and a fifth longer even if
/// rows are read one after another.
constexpr int64_t kPrefetchBytes = 8 << 10;

/// The words of a tile's rows.
template <class S>
struct Tile {
  const uint32_t* row[kTile];
  int64_t words, ahead;  // words of a row; from a word to the one to fetch

  Tile(const W4Layer& layer, int64_t first_row) : words(ceil_div(layer.in_features, 8)) {
    for (int r = 0; r < kTile; ++r) row[r] = layer.codes + clamp_row(layer, first_row + r) * words;
    const int64_t tile = kTile * words;  // whole tiles ahead, so that every line is fetched once
    ahead = ceil_div(kPrefetchBytes / int64_t(sizeof(uint32_t)), tile) * tile;
  }

  /// Which lanes of a block's words lie in the row.
  typename S::Window window(int64_t block) const { return S::window(words - block * S::lanes); }

  typename S::Words load(int r, int64_t block, typename S::Window window) const {
    __builtin_prefetch(row[r] + block * S::lanes + ahead);  // past the end of the layer it does nothing
    return load_near(r, block, window);
  }

  /// Of a block beside one whose `load` fetched ahead for both.
  typename S::Words load_near(int r, int64_t block, typename S::Window window) const {
    return S::load_words(row[r] + block * S::lanes, window);
  }
};

/// The weight of input k of a row, one code at a time.
inline float weight_at(const W4Layer& layer, int64_t row, int64_t k) {
  const int64_t g = k / layer.group_size, words = ceil_div(layer.in_features, 8);
  const float zero =
      layer.zeros ? float(layer.zeros[row / 8 * layer.groups + g] >> 4 * (row % 8) & 15) : kSymmetricZero;
  const float code = float(layer.codes[row * words + k / 8] >> 4 * (k % 8) & 15);
  return (code - zero) * read(layer.scales, layer.scale_type, row * layer.groups + g);
}

/// The tile's bias in fp32; zeros where the layer has none.
template <class S>
typename S::Four tile_bias(const W4Layer& layer, int64_t first_row) {
  float values[kTile] = {};
  const int64_t left = layer.out_features - first_row;
  if (layer.bias)
    for (int r = 0; r < kTile && r < left; ++r) values[r] = read(layer.bias, layer.bias_type, first_row + r);
  return S::load_four(values);
}

/// Round and store one activation row's outputs of a tile.
template <class S>
inline __attribute__((always_inline)) void store_tile(const W4Layer& layer, const W4Product& product,
                                                      int64_t m, int64_t first_row, typename S::Four values) {
  const int64_t at = m * layer.out_features + first_row, left = layer.out_features - first_row;
  if (left >= kTile) return S::write_four(product.y, product.y_type, at, values);
  float each[kTile];
  S::write_four(each, Float::f32, 0, values);
  for (int64_t r = 0; r < left; ++r) write(product.y, product.y_type, at + r, each[r]);
}

}  // namespace
}  // namespace tarq
