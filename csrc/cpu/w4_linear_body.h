// The kernel's loops, written once over a description `S` of an instruction set. Included by one source file
// per instruction set, after its `#pragma GCC target`; everything is in an anonymous namespace, so that no
// function compiled for a newer instruction set can be linked into another file.
//
// S has
//
// - Element: type of activations and decoded weights; Vector: `width` of them
// - Words: `lanes` int32 words; Window: which lanes of a row's last words are there
// - Sum: partial sums of one output; Four: kTile finished outputs
// - Table: 16 weights to look up; steps: vectors a block decodes to
// - fused_rows, micro_rows: activation rows of a register tile in `fused`, in `tiled`
// - scale_after: `fused` multiplies by the scale after summing a group's products instead of before
// - weights(words, scale, zero): a step's weights where every word has a scale and a zero point of its own
//
// and the functions used below.
#pragma once

#include <cstdint>
#include <cstring>

#include "float.h"
#include "w4_linear.h"

namespace tarq {
namespace {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// ---- decoding

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

  /// Whole vectors: what they write past a group's end, the next group or row writes over.
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

/// How far ahead of the loads words are fetched. Processors do not see by themselves that a tile's rows are
/// one stream: without this a layer that is not in cache takes five times as long, and where rows are read
/// one after another still a fifth longer.
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

/// Calls visit(first block, end, first group) for runs of blocks with the same groups. Where a block holds as
/// many inputs as a usual group, runs are single blocks: visit is then straight code, a third faster than a
/// loop.
template <class S, int parts, class Visit>
inline __attribute__((always_inline)) void for_runs(const W4Layer& layer, Visit&& visit) {
  const int64_t blocks = padded_inputs<S>(layer) / kBlock<S>;
  if constexpr (parts > 1) {
    for (int64_t b = 0; b < blocks; ++b) visit(b, b + 1, b * parts);
    return;
  }
  const int64_t run = blocks_of_group<S>(layer);
  for (int64_t first = 0, group = 0; first < blocks; first += run, ++group) {
    const int64_t end = first + run < blocks ? first + run : blocks;
    if constexpr (kBlock<S> < 128) {
      visit(first, end, group);
    } else {
      for (int64_t b = first; b < end; ++b) visit(b, b + 1, group);
    }
  }
}

/// Weight tables of one row's groups from `group` on: entry c is (c − zero) · scale.
template <class S, int parts>
inline __attribute__((always_inline)) void weight_tables(const TileGroups& groups, int r, int64_t group,
                                                         typename S::Table* tables) {
  const int64_t at = r * groups.stride + group;
  for (int p = 0; p < parts; ++p) tables[p] = S::weight_table(groups.scales[at + p], groups.zeros[at + p]);
}

/// The weight of input k of a row, one code at a time.
inline float weight_at(const W4Layer& layer, int64_t row, int64_t k) {
  const int64_t g = k / layer.group_size, words = ceil_div(layer.in_features, 8);
  const float zero =
      layer.zeros ? float(layer.zeros[row / 8 * layer.groups + g] >> 4 * (row % 8) & 15) : kSymmetricZero;
  const float code = float(layer.codes[row * words + k / 8] >> 4 * (k % 8) & 15);
  return (code - zero) * read(layer.scales, layer.scale_type, row * layer.groups + g);
}

/// Where a tile's decoded weights go: vector v of row r to out + r · row_stride + v · vector_stride.
template <class S>
struct Decoded {
  typename S::Element* out;
  int64_t row_stride, vector_stride;
};

/// Any group size: one code at a time.
template <class S>
void decode_any(const W4Layer& layer, int64_t first_row, Decoded<S> to) {
  const int64_t padded = padded_inputs<S>(layer);
  for (int r = 0; r < kTile; ++r) {
    const int64_t row = clamp_row(layer, first_row + r);
    for (int64_t e = 0; e < padded; ++e) {
      const int64_t block = e / kBlock<S> * kBlock<S>;
      const int64_t k = block + S::source(int(e - block));
      typename S::Element* at = to.out + r * to.row_stride + e / S::width * to.vector_stride + e % S::width;
      assign(at, k < layer.in_features ? weight_at(layer, row, k) : 0.0f);
    }
  }
}

template <class S, int parts>
void decode_blocks(const W4Layer& layer, int64_t first_row, Decoded<S> to, const TileGroups& groups) {
  const Tile<S> tile(layer, first_row);
  for_runs<S, parts>(layer, [&](int64_t first, int64_t end, int64_t group) __attribute__((always_inline)) {
    for (int r = 0; r < kTile; ++r) {
      typename S::Table tables[parts];
      weight_tables<S, parts>(groups, r, group, tables);
      typename S::Element* at = to.out + r * to.row_stride + first * S::steps * to.vector_stride;
      for (int64_t b = first; b < end; ++b) {
        typename S::Words words = tile.load(r, b, tile.window(b));
#pragma GCC unroll 8
        for (int j = 0; j < S::steps; ++j, at += to.vector_stride) {
          S::store(at, S::template lookup<parts>(tables, words));
          words = S::shift(words);
        }
      }
    }
  });
}

/// The same where every word has a scale and a zero point of its own.
template <class S>
void decode_words(const W4Layer& layer, int64_t first_row, Decoded<S> to, const TileGroups& groups) {
  const Tile<S> tile(layer, first_row);
  for_runs<S, S::lanes>(layer, [&](int64_t b, int64_t, int64_t word) __attribute__((always_inline)) {
    for (int r = 0; r < kTile; ++r) {
      const typename S::Sum scale = S::template spread<S::lanes>(groups.scales + r * groups.stride + word);
      const typename S::Sum zero = S::template spread<S::lanes>(groups.zeros + r * groups.stride + word);
      typename S::Element* at = to.out + r * to.row_stride + b * S::steps * to.vector_stride;
      typename S::Words words = tile.load(r, b, tile.window(b));
      for (int j = 0; j < S::steps; ++j, at += to.vector_stride) {
        S::store(at, S::weights(words, scale, zero));
        words = S::shift(words);
      }
    }
  });
}

template <class S>
void decode_tile(const W4Layer& layer, int64_t first_row, Decoded<S> to, const TileGroups& groups) {
  const int parts = block_parts<S>(layer);
  if (parts == 0) return decode_any<S>(layer, first_row, to);
  groups.read_rows<S>(layer, first_row);
  if (parts == 1) return decode_blocks<S, 1>(layer, first_row, to, groups);
  if (parts == 2) return decode_blocks<S, 2>(layer, first_row, to, groups);
  if constexpr (S::lanes > 4) {
    if (parts == 4) return decode_blocks<S, 4>(layer, first_row, to, groups);
    decode_words<S>(layer, first_row, to, groups);
  }
}

// ---- products

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

/// Sum up one activation row's outputs of a tile, add the bias, round, store.
template <class S>
inline __attribute__((always_inline)) void finish(const W4Layer& layer, const W4Product& product, int64_t m,
                                                  int64_t first_row, const typename S::Sum* sums,
                                                  typename S::Four bias) {
  store_tile<S>(layer, product, m, first_row, S::add_four(S::reduce(sums), bias));
}

/// A few activation rows: the weights live in registers only, read once for all rows. Whether the layer is
/// symmetric (no zero points) matters where codes are looked up (S::scale_after).
template <class S, int parts, int rows, bool symmetric>
void fused_tile(const W4Layer& layer, const W4Product& product, int64_t first_row, const TileGroups& groups) {
  using Element = typename S::Element;
  // Sums in flight hide the latency of a multiply-add: two for every output where there are few outputs.
  constexpr int chains = rows == 1 && !S::scale_after ? 2 : 1;
  const Tile<S> tile(layer, first_row);
  const Element* x = static_cast<const Element*>(product.x);
  typename S::Sum sums[rows][chains][kTile];
  for (int m = 0; m < rows; ++m)
    for (int c = 0; c < chains; ++c)
      for (int r = 0; r < kTile; ++r) sums[m][c][r] = S::zero();

  for_runs<S, parts>(layer, [&](int64_t first, int64_t end, int64_t group) __attribute__((always_inline)) {
    if constexpr (S::scale_after) {
      constexpr int tables_used = symmetric ? 1 : parts;
      for (int r = 0; r < kTile; ++r) {
        const int64_t at = r * groups.stride + group;
        typename S::Table tables[tables_used];
        for (int p = 0; p < tables_used; ++p)
          tables[p] = S::code_table(symmetric ? kSymmetricZero : groups.zeros[at + p]);
        typename S::Sum part[rows];
        for (int m = 0; m < rows; ++m) part[m] = S::zero();
        for (int64_t b = first; b < end; ++b) {
          typename S::Words words = tile.load(r, b, tile.window(b));
#pragma GCC unroll 8
          for (int j = 0; j < S::steps; ++j, words = S::shift(words)) {
            const typename S::Vector weight = S::template lookup<tables_used>(tables, words);
            for (int m = 0; m < rows; ++m)
              part[m] =
                  S::dot(part[m], weight, S::load(x + m * product.stride + (b * S::steps + j) * S::width));
          }
        }
        const typename S::Sum scale = S::template spread<parts>(groups.scales + at);
        for (int m = 0; m < rows; ++m) sums[m][0][r] = S::multiply_add(sums[m][0][r], part[m], scale);
      }
    } else {
      typename S::Table tables[kTile][parts];
      for (int r = 0; r < kTile; ++r) weight_tables<S, parts>(groups, r, group, tables[r]);
      for (int64_t b = first; b < end; ++b) {
        const typename S::Window window = tile.window(b);
        typename S::Words words[kTile];
        for (int r = 0; r < kTile; ++r) words[r] = tile.load(r, b, window);
#pragma GCC unroll 8
        for (int j = 0; j < S::steps; ++j) {
          typename S::Vector inputs[rows];
          for (int m = 0; m < rows; ++m)
            inputs[m] = S::load(x + m * product.stride + (b * S::steps + j) * S::width);
          for (int r = 0; r < kTile; ++r) {
            const typename S::Vector weight = S::template lookup<parts>(tables[r], words[r]);
            words[r] = S::shift(words[r]);
            for (int m = 0; m < rows; ++m)
              sums[m][j % chains][r] = S::dot(sums[m][j % chains][r], weight, inputs[m]);
          }
        }
      }
    }
  });

  const typename S::Four bias = tile_bias<S>(layer, first_row);
  for (int m = 0; m < rows; ++m) {
    for (int c = 1; c < chains; ++c)
      for (int r = 0; r < kTile; ++r) sums[m][0][r] = S::add(sums[m][0][r], sums[m][c][r]);
    finish<S>(layer, product, m, first_row, sums[m][0], bias);
  }
}

template <class S, int parts, int rows = S::fused_rows>
void fused_rows(const W4Layer& layer, const W4Product& product, int64_t first_row, const TileGroups& groups) {
  if constexpr (rows > 1)
    if (product.rows < rows) return fused_rows<S, parts, rows - 1>(layer, product, first_row, groups);
  if (S::scale_after && !layer.zeros)
    return fused_tile<S, parts, rows, true>(layer, product, first_row, groups);
  fused_tile<S, parts, rows, false>(layer, product, first_row, groups);
}

/// rows × kTile outputs from decoded weights [padded / width][kTile][width].
template <class S, int rows>
void micro_tile(const W4Layer& layer, const W4Product& product, int64_t m0, int64_t first_row,
                const typename S::Element* weights) {
  const typename S::Element* x = static_cast<const typename S::Element*>(product.x) + m0 * product.stride;
  const int64_t padded = padded_inputs<S>(layer);
  typename S::Sum sums[rows][kTile];
  for (int m = 0; m < rows; ++m)
    for (int r = 0; r < kTile; ++r) sums[m][r] = S::zero();
  for (int64_t k = 0; k < padded; k += S::width, weights += kTile * S::width) {
    typename S::Vector weight[kTile];
    for (int r = 0; r < kTile; ++r) weight[r] = S::load(weights + r * S::width);
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) {
      const typename S::Vector input = S::load(x + m * product.stride + k);
      for (int r = 0; r < kTile; ++r) sums[m][r] = S::dot(sums[m][r], weight[r], input);
    }
  }
  const typename S::Four bias = tile_bias<S>(layer, first_row);
  for (int m = 0; m < rows; ++m) finish<S>(layer, product, m0 + m, first_row, sums[m], bias);
}

template <class S, int rows = S::micro_rows>
void micro_rows(int64_t count, const W4Layer& layer, const W4Product& product, int64_t m0, int64_t first_row,
                const typename S::Element* weights) {
  if constexpr (rows > 1)
    if (count < rows) return micro_rows<S, rows - 1>(count, layer, product, m0, first_row, weights);
  micro_tile<S, rows>(layer, product, m0, first_row, weights);
}

/// Bytes of decoded weights a thread keeps at hand: they and a strip of activations stay in its L2 cache.
constexpr int64_t kScratchBytes = 256 << 10;

template <class S>
int64_t scratch_tiles(const W4Layer& layer) {
  const int64_t tile = kTile * padded_inputs<S>(layer) * int64_t(sizeof(typename S::Element));
  return tile < kScratchBytes ? kScratchBytes / tile : 1;
}

// ---- what W4Kernel points to

template <class S>
int64_t scratch_bytes(const W4Layer& layer) {
  const int64_t weights = scratch_tiles<S>(layer) * kTile * padded_inputs<S>(layer);
  return TileGroups::bytes<S>(layer) + weights * int64_t(sizeof(typename S::Element));
}

template <class S>
typename S::Element* scratch_weights(void* scratch, const W4Layer& layer) {
  return reinterpret_cast<typename S::Element*>(static_cast<char*>(scratch) + TileGroups::bytes<S>(layer));
}

template <class S>
void pack_input(const void* x, Float x_type, int64_t rows, int64_t in_features, void* out, int64_t stride,
                float*) {
  using Element = typename S::Element;
  for (int64_t m = 0; m < rows; ++m) {
    Element* to = static_cast<Element*>(out) + m * stride;
    const int64_t row = m * in_features;
    int64_t k = 0;
    for (; k + kBlock<S> <= in_features; k += kBlock<S>) S::pack_block(x, x_type, row + k, to + k);
    for (int64_t e = k; e < stride; ++e) {
      const int64_t from = k + S::source(int((e - k) % kBlock<S>));
      const bool inside = e - k < kBlock<S> && from < in_features;
      assign(to + e, inside ? read(x, x_type, row + from) : 0.0f);
    }
  }
}

template <class S>
void fused(const W4Layer& layer, const W4Product& product, int64_t begin, int64_t end, void* scratch) {
  const TileGroups groups = TileGroups::in<S>(scratch, layer);
  const int parts = block_parts<S>(layer);
  for (int64_t n = begin; n < end; n += kTile) {
    groups.read_rows<S>(layer, n);
    if (parts == 1) fused_rows<S, 1>(layer, product, n, groups);
    if (parts == 2) fused_rows<S, 2>(layer, product, n, groups);
    if constexpr (S::lanes > 4)
      if (parts == 4) fused_rows<S, 4>(layer, product, n, groups);
  }
}

template <class S>
void tiled(const W4Layer& layer, const W4Product& product, int64_t begin, int64_t end, void* scratch) {
  using Element = typename S::Element;
  const TileGroups groups = TileGroups::in<S>(scratch, layer);
  Element* weights = scratch_weights<S>(scratch, layer);
  const int64_t tile_size = kTile * padded_inputs<S>(layer), step = scratch_tiles<S>(layer) * kTile;
  const int64_t strips = ceil_div(product.rows, S::micro_rows);
  for (int64_t n0 = begin; n0 < end; n0 += step) {
    const int64_t n1 = n0 + step < end ? n0 + step : end;
    for (int64_t n = n0; n < n1; n += kTile)
      decode_tile<S>(layer, n, {weights + (n - n0) / kTile * tile_size, S::width, kTile * S::width}, groups);
    for (int64_t s = 0; s < strips; ++s) {  // strips of equal height, give or take one row
      const int64_t m0 = product.rows * s / strips, m1 = product.rows * (s + 1) / strips;
      for (int64_t n = n0; n < n1; n += kTile)
        micro_rows<S>(m1 - m0, layer, product, m0, n, weights + (n - n0) / kTile * tile_size);
    }
  }
}

/// Any group size, few rows: `fused` where the groups of a block have a table each, in registers.
template <class S>
void fused_or_tiled(const W4Layer& layer, const W4Product& product, int64_t begin, int64_t end,
                    void* scratch) {
  const int parts = block_parts<S>(layer);
  if (parts == 0 || parts > 4) return tiled<S>(layer, product, begin, end, scratch);
  fused<S>(layer, product, begin, end, scratch);
}

/// One cache line more a row: rows a power of two apart would share the few lines of one cache set.
template <class S>
int64_t row_stride(int64_t in_features) {
  return round_up(in_features, kBlock<S>) + 64 / int64_t(sizeof(typename S::Element));
}

template <class S>
void decode(const W4Layer& layer, void* out, int64_t begin, int64_t end, void* scratch) {
  using Element = typename S::Element;
  const TileGroups groups = TileGroups::in<S>(scratch, layer);
  Element* spare = scratch_weights<S>(scratch, layer);
  const int64_t padded = padded_inputs<S>(layer);
  Element* to = static_cast<Element*>(out);
  for (int64_t n = begin; n < end; n += kTile, to += kTile * padded) {
    const int64_t left = layer.out_features - n;
    // The last tile repeats a row, which has no place in `out`.
    decode_tile<S>(layer, n, {left < kTile ? spare : to, padded, S::width}, groups);
    if (left < kTile) std::memcpy(to, spare, size_t(left * padded) * sizeof(Element));
  }
}

template <class S>
constexpr W4Kernel make_kernel(const char* isa, Float element, int64_t tiled_rows) {
  return {
      isa,           element,          kBlock<S>,         false,    S::fused_rows, tiled_rows, row_stride<S>,
      pack_input<S>, scratch_bytes<S>, fused_or_tiled<S>, tiled<S>, decode<S>};
}

}  // namespace
}  // namespace tarq
