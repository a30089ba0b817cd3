// The kernel's loops, written once over a description `S` of an instruction set. Included by one source file
// per instruction set, after its `#pragma GCC target`; everything is in an anonymous namespace, so that no
// function compiled for a newer instruction set can be linked into another file.
//
// S has: Element (of activations and weights), Words, Vector, Sum; lanes, steps, width = elements a Vector;
// micro_rows; load_words, load_words_part, shift, lookup, load, store, zero, dot, reduce, fill_table,
// convert, source (which input of a block lies at element e).
#pragma once

#include <cstdint>
#include <cstring>

#include "w4_linear.h"

namespace tarq {
namespace {

// ---- scalar conversions
// ------------------------------------------------------------------------------------

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float bf16_to_float(uint16_t half) { return from_bits(uint32_t(half) << 16); }

inline uint16_t float_to_bf16(float value) {  // round to nearest even
  const uint32_t bits = to_bits(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, rest = half & 0x7fff;
  if (rest >= 0x7c00) return from_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  // The exponent field is 112 short; scaling by 2^112 mends that for subnormal numbers too.
  return from_bits(sign | to_bits(from_bits(rest << 13) * 0x1p112f));
}

inline uint16_t float_to_half(float value) {  // round to nearest even
  const uint32_t bits = to_bits(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (rest >= 0x477ff000) return uint16_t(sign | 0x7c00);
  if (rest < 0x38800000)  // subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits
    return uint16_t(sign | (to_bits(from_bits(rest) + 0.5f) - 0x3f000000));
  return uint16_t(sign | (((rest + 0xfff + (rest >> 13 & 1)) >> 13) - 0x1c000));
}

inline float read(const void* data, Float type, int64_t i) {
  if (type == Float::f32) return static_cast<const float*>(data)[i];
  const uint16_t half = static_cast<const uint16_t*>(data)[i];
  return type == Float::bf16 ? bf16_to_float(half) : half_to_float(half);
}

inline float round_to(float value, Float type) {
  if (type == Float::f32) return value;
  return type == Float::bf16 ? bf16_to_float(float_to_bf16(value)) : half_to_float(float_to_half(value));
}

inline void write(void* data, Float type, int64_t i, const float* values, int count) {
  for (int k = 0; k < count; ++k) {
    if (type == Float::f32) {
      static_cast<float*>(data)[i + k] = values[k];
    } else {
      static_cast<uint16_t*>(data)[i + k] =
          type == Float::bf16 ? float_to_bf16(values[k]) : float_to_half(values[k]);
    }
  }
}

inline void assign(float* to, float value) { *to = value; }
inline void assign(uint16_t* to, float value) { *to = float_to_bf16(value); }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// ---- decoding
// ----------------------------------------------------------------------------------------------

template <class S>
constexpr int64_t kBlock = 8 * S::lanes;

/// How blocks and groups meet: `parts` groups in a block (1: a block lies in one group), 0: neither divides.
template <class S>
int block_parts(const W4Layer& layer) {
  if (layer.groups == 1 || layer.group_size % kBlock<S> == 0) return 1;
  if (layer.group_size * 2 == kBlock<S>) return 2;
  if (layer.group_size * 4 == kBlock<S> && S::lanes >= 4) return 4;
  return 0;
}

template <class S>
int64_t padded_inputs(const W4Layer& layer) {
  return round_up(layer.in_features, kBlock<S>);
}

/// Groups with a table: those of the padded row, so that the last block needs no bounds.
template <class S>
int64_t table_groups(const W4Layer& layer) {
  return layer.groups == 1 ? 1 : ceil_div(padded_inputs<S>(layer), layer.group_size);
}

template <class S>
int64_t table_elements(const W4Layer& layer) {
  return kTile * table_groups<S>(layer) * 16;
}

/// Tables of the tile's rows: [kTile][table_groups][16]. Rows past the end repeat the last one.
template <class S>
void fill_tables(const W4Layer& layer, int64_t first_row, typename S::Element* tables) {
  const int64_t stride = table_groups<S>(layer) * 16;
  for (int r = 0; r < kTile; ++r) {
    const int64_t row = first_row + r < layer.out_features ? first_row + r : layer.out_features - 1;
    typename S::Element* table = tables + r * stride;
    const uint32_t* zeros = layer.zeros ? layer.zeros + row / 8 * layer.groups : nullptr;
    const int shift = 4 * (row % 8);
    for (int64_t g = 0; g < layer.groups; ++g, table += 16) {
      const float zero = zeros ? float(zeros[g] >> shift & 15) : 8.0f;
      S::fill_table(table, layer.scales, layer.scale_type, row * layer.groups + g, zero);
    }
    std::memset(table, 0, (stride - layer.groups * 16) * sizeof(*table));
  }
}

/// The tile's word rows and its position in them.
template <class S>
struct Tile {
  const uint32_t* row[kTile];
  int64_t words;

  Tile(const W4Layer& layer, int64_t first_row) : words(ceil_div(layer.in_features, 8)) {
    for (int r = 0; r < kTile; ++r) {
      const int64_t n = first_row + r < layer.out_features ? first_row + r : layer.out_features - 1;
      row[r] = layer.codes + n * words;
    }
  }

  typename S::Words load(int r, int64_t word) const {
    return word + S::lanes <= words ? S::load_words(row[r] + word)
                                    : S::load_words_part(row[r] + word, int(words - word));
  }
};

/// Calls visit(block, tables of that block's groups) for every block; `stride` is between two rows' tables.
template <class S, int parts, class Visit>
inline __attribute__((always_inline)) void for_blocks(const W4Layer& layer, const typename S::Element* tables,
                                                      Visit&& visit) {
  const int64_t blocks = padded_inputs<S>(layer) / kBlock<S>;
  if constexpr (parts > 1) {
    for (int64_t b = 0; b < blocks; ++b) visit(b, tables + b * parts * 16);
  } else {
    const int64_t run = layer.groups == 1 ? blocks : layer.group_size / kBlock<S>;
    for (int64_t first = 0; first < blocks; first += run, tables += 16) {
      const int64_t end = first + run < blocks ? first + run : blocks;
      for (int64_t b = first; b < end; ++b) visit(b, tables);
    }
  }
}

/// Any group size: one code at a time. `out` holds the tile's rows at out_row(r) + k · out_step.
template <class S>
void decode_any(const W4Layer& layer, int64_t first_row, typename S::Element* out, int64_t row_stride,
                int64_t vector_stride) {
  using Element = typename S::Element;
  const int64_t words = ceil_div(layer.in_features, 8), padded = padded_inputs<S>(layer);
  for (int r = 0; r < kTile; ++r) {
    const int64_t row = first_row + r < layer.out_features ? first_row + r : layer.out_features - 1;
    for (int64_t e = 0; e < padded; ++e) {
      const int64_t k = e / kBlock<S> * kBlock<S> + S::source(int(e % kBlock<S>));
      Element* to = out + r * row_stride + e / S::width * vector_stride + e % S::width;
      if (k >= layer.in_features) {
        assign(to, 0.0f);
        continue;
      }
      const int64_t g = k / layer.group_size;
      const float zero =
          layer.zeros ? float(layer.zeros[row / 8 * layer.groups + g] >> 4 * (row % 8) & 15) : 8.0f;
      const float code = float(layer.codes[row * words + k / 8] >> 4 * (k % 8) & 15);
      const float scale = read(layer.scales, layer.scale_type, row * layer.groups + g);
      assign(to, round_to((code - zero) * scale, layer.scale_type));
    }
  }
}

template <class S, int parts>
void decode_blocks(const W4Layer& layer, int64_t first_row, typename S::Element* out, int64_t row_stride,
                   int64_t vector_stride, const typename S::Element* tables) {
  const Tile<S> tile(layer, first_row);
  const int64_t table_stride = table_groups<S>(layer) * 16;
  for_blocks<S, parts>(layer, tables, [&](int64_t b, const typename S::Element* table) {
    for (int r = 0; r < kTile; ++r) {
      typename S::Words words = tile.load(r, b * S::lanes);
      typename S::Element* to = out + r * row_stride + b * S::steps * vector_stride;
#pragma GCC unroll 8
      for (int j = 0; j < S::steps; ++j, words = S::shift(words))
        S::store(to + j * vector_stride, S::template lookup<parts>(table + r * table_stride, words));
    }
  });
}

/// A tile's weights in block order: vector v of row r goes to out + r · row_stride + v · vector_stride.
template <class S>
void decode_tile(const W4Layer& layer, int64_t first_row, typename S::Element* out, int64_t row_stride,
                 int64_t vector_stride, typename S::Element* tables) {
  const int parts = block_parts<S>(layer);
  if (parts == 0) return decode_any<S>(layer, first_row, out, row_stride, vector_stride);
  fill_tables<S>(layer, first_row, tables);
  if (parts == 1) return decode_blocks<S, 1>(layer, first_row, out, row_stride, vector_stride, tables);
  if (parts == 2) return decode_blocks<S, 2>(layer, first_row, out, row_stride, vector_stride, tables);
  if constexpr (S::lanes >= 4) decode_blocks<S, 4>(layer, first_row, out, row_stride, vector_stride, tables);
}

// ---- products
// ----------------------------------------------------------------------------------------------

/// Reduce the sums of one activation row and a tile of outputs, add the bias, round, store.
template <class S>
inline void finish(const W4Layer& layer, const W4Product& product, int64_t m, int64_t first_row,
                   const typename S::Sum* sums) {
  float values[kTile];
  S::reduce(sums, values);
  const int64_t left = layer.out_features - first_row;
  const int count = left < kTile ? int(left) : kTile;
  if (layer.bias)
    for (int r = 0; r < count; ++r) values[r] += read(layer.bias, layer.bias_type, first_row + r);
  write(product.y, product.y_type, m * layer.out_features + first_row, values, count);
}

/// rows ≤ 4 activation rows: the weights live in registers only, read once for all rows.
template <class S, int parts, int rows>
void fused_tile(const W4Layer& layer, const W4Product& product, int64_t first_row,
                const typename S::Element* tables) {
  using Element = typename S::Element;
  const Tile<S> tile(layer, first_row);
  const int64_t table_stride = table_groups<S>(layer) * 16;
  const Element* x = static_cast<const Element*>(product.x);
  typename S::Sum sums[rows][kTile];
  for (int m = 0; m < rows; ++m)
    for (int r = 0; r < kTile; ++r) sums[m][r] = S::zero();
  for_blocks<S, parts>(layer, tables, [&](int64_t b, const Element* table) __attribute__((always_inline)) {
    typename S::Words words[kTile];
    for (int r = 0; r < kTile; ++r) words[r] = tile.load(r, b * S::lanes);
    const Element* at = x + b * kBlock<S>;
#pragma GCC unroll 8
    for (int j = 0; j < S::steps; ++j) {
      typename S::Vector inputs[rows];
      for (int m = 0; m < rows; ++m) inputs[m] = S::load(at + m * product.stride + j * S::width);
      for (int r = 0; r < kTile; ++r) {
        const typename S::Vector weight = S::template lookup<parts>(table + r * table_stride, words[r]);
        words[r] = S::shift(words[r]);
        for (int m = 0; m < rows; ++m) sums[m][r] = S::dot(sums[m][r], weight, inputs[m]);
      }
    }
  });
  for (int m = 0; m < rows; ++m) finish<S>(layer, product, m, first_row, sums[m]);
}

template <class S, int parts>
void fused_rows(const W4Layer& layer, const W4Product& product, int64_t first_row,
                const typename S::Element* tables) {
  switch (product.rows) {
    case 1:
      return fused_tile<S, parts, 1>(layer, product, first_row, tables);
    case 2:
      return fused_tile<S, parts, 2>(layer, product, first_row, tables);
    case 3:
      return fused_tile<S, parts, 3>(layer, product, first_row, tables);
    default:
      return fused_tile<S, parts, 4>(layer, product, first_row, tables);
  }
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
  for (int m = 0; m < rows; ++m) finish<S>(layer, product, m0 + m, first_row, sums[m]);
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
// -------------------------------------------------------------------------------

template <class S>
int64_t scratch_bytes(const W4Layer& layer) {
  const int64_t weights = scratch_tiles<S>(layer) * kTile * padded_inputs<S>(layer);
  return (weights + table_elements<S>(layer)) * int64_t(sizeof(typename S::Element));
}

template <class S>
void pack_input(const void* x, Float x_type, int64_t rows, int64_t in_features, void* out, int64_t stride) {
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
  typename S::Element* tables = static_cast<typename S::Element*>(scratch);
  const int parts = block_parts<S>(layer);
  for (int64_t n = begin; n < end; n += kTile) {
    fill_tables<S>(layer, n, tables);
    if (parts == 1) fused_rows<S, 1>(layer, product, n, tables);
    if (parts == 2) fused_rows<S, 2>(layer, product, n, tables);
    if constexpr (S::lanes >= 4)
      if (parts == 4) fused_rows<S, 4>(layer, product, n, tables);
  }
}

template <class S>
void tiled(const W4Layer& layer, const W4Product& product, int64_t begin, int64_t end, void* scratch) {
  using Element = typename S::Element;
  Element* tables = static_cast<Element*>(scratch);
  Element* weights = tables + table_elements<S>(layer);
  const int64_t tile_size = kTile * padded_inputs<S>(layer), step = scratch_tiles<S>(layer) * kTile;
  const int64_t strips = ceil_div(product.rows, S::micro_rows);
  for (int64_t n0 = begin; n0 < end; n0 += step) {
    const int64_t n1 = n0 + step < end ? n0 + step : end;
    for (int64_t n = n0; n < n1; n += kTile)
      decode_tile<S>(layer, n, weights + (n - n0) / kTile * tile_size, S::width, kTile * S::width, tables);
    for (int64_t s = 0; s < strips; ++s) {  // strips of equal height, give or take one row
      const int64_t m0 = product.rows * s / strips, m1 = product.rows * (s + 1) / strips;
      for (int64_t n = n0; n < n1; n += kTile)
        micro_rows<S>(m1 - m0, layer, product, m0, n, weights + (n - n0) / kTile * tile_size);
    }
  }
}

/// Any group size, few rows: what `fused` is where a block spans an awkward number of groups.
template <class S>
void fused_or_tiled(const W4Layer& layer, const W4Product& product, int64_t begin, int64_t end,
                    void* scratch) {
  if (block_parts<S>(layer) == 0) return tiled<S>(layer, product, begin, end, scratch);
  fused<S>(layer, product, begin, end, scratch);
}

template <class S>
void decode(const W4Layer& layer, void* out, int64_t stride, int64_t begin, int64_t end, void* scratch) {
  using Element = typename S::Element;
  Element* tables = static_cast<Element*>(scratch);
  Element* rows = tables + table_elements<S>(layer);
  const int64_t padded = padded_inputs<S>(layer);
  for (int64_t n = begin; n < end; n += kTile) {
    Element* to = static_cast<Element*>(out) + n * stride;
    const int64_t left = layer.out_features - n;
    if (left >= kTile) {
      decode_tile<S>(layer, n, to, stride, S::width, tables);
    } else {  // the last tile repeats a row, which has no place in `out`
      decode_tile<S>(layer, n, rows, padded, S::width, tables);
      for (int64_t r = 0; r < left; ++r)
        std::memcpy(to + r * stride, rows + r * padded, size_t(padded) * sizeof(Element));
    }
  }
}

template <class S>
constexpr W4Kernel make_kernel(const char* isa, Float element, int64_t fused_rows, int64_t tiled_rows) {
  return {isa,           element,          kBlock<S>,         fused_rows, tiled_rows,
          pack_input<S>, scratch_bytes<S>, fused_or_tiled<S>, tiled<S>,   decode<S>};
}

}  // namespace
}  // namespace tarq
