// The int8 kernel's loops over a description `S` of an instruction set; see engine.h, whose tiles,
// scales and epilogue they share. Beyond what those need, S has
//
// - Lanes: integer sums of four products each; Bytes: four int8 activations a lane
// - low, high: the nibbles of Words as bytes; ones, eights: such bytes
// - load_bytes, no_sums, load_lanes, store_negative
// - dot(Lanes, Words, Bytes): unsigned times signed bytes, added
// - joined: blocks whose products `dot_joined` sums at once; where it is 1 `dot` does
// - to_float(Lanes); spread<parts>(values): a block's groups, each in the lanes of its words
// - multiply, multiply_add
// - int8_rows: activation rows of a register tile
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/w4_linear/int8.h"
#include "cpu/w4_linear/layout.h"

namespace tarq {
namespace {

/// t = max |x| / 127 of one group, and round(x / t), ties to even. NaN or infinity makes t NaN, and so the
/// outputs.
inline float quantize_group(const float* x, int64_t count, int8_t* to) {
  uint32_t largest = 0;  // the bits of positive numbers are in the numbers' order
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t magnitude = to_bits(x[i]) & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  constexpr uint32_t kInfinity = 0x7f800000, kTiny = 0x01800000;  // below 2⁻¹²⁴ 127/t would overflow
  if (largest >= kInfinity || largest < kTiny) {
    for (int64_t i = 0; i < count; ++i) to[i] = 0;
    return largest >= kInfinity ? __builtin_nanf("") : 0.0f;
  }
  const float inverse = 127.0f / from_bits(largest);
  for (int64_t i = 0; i < count; ++i) to[i] = int8_t(int(__builtin_rintf(x[i] * inverse)));
  return from_bits(largest) / 127.0f;
}

template <class S>
int64_t int8_scratch_bytes(const W4Layer& layer) {
  const int64_t row = padded_inputs<S>(layer) * int64_t(sizeof(float) + sizeof(int8_t));
  const int64_t groups = TileGroups::bytes<S>(layer);
  return round_up(row > groups ? row : groups, 64);
}

/// Blocks that share their scale: those of a group, or one block of several groups.
struct Runs {
  int64_t blocks, length, count;

  template <class S>
  static Runs of(const W4Layer& layer) {
    const int64_t blocks = padded_inputs<S>(layer) / kBlock<S>;
    const int64_t length = block_parts<S>(layer) > 1 ? 1 : blocks_of_group<S>(layer);
    return {blocks, length, ceil_div(blocks, length)};
  }
};

template <class S>
void quantize_int8(const W4Layer& layer, const void* x, Float x_type, const Int8Input& to, int64_t begin,
                   int64_t end, void* scratch) {
  constexpr int64_t half = kBlock<S> / 2;
  const int64_t k = layer.in_features, group = layer.groups == 1 ? k : layer.group_size;
  float* const values = static_cast<float*>(scratch);
  int8_t* const codes = reinterpret_cast<int8_t*>(values + to.padded);
  const Runs runs = Runs::of<S>(layer);
  for (int64_t m = begin; m < end; ++m) {
    S::to_float(x, x_type, m * k, k, values);
    for (int64_t g = 0; g < to.groups; ++g) {
      const int64_t first = g * group, left = k - first;
      const int64_t count = left < 0 ? 0 : left < group ? left : group;
      to.scales[m * to.groups + g] = quantize_group(values + first, count, codes + first);
    }
    std::memset(codes + k, 0, size_t(to.padded - k));
    const typename S::Words weight = layer.zeros ? S::ones() : S::eights();
    int8_t* __restrict__ even = to.codes + m * to.padded;
    for (int64_t run = 0, b = 0; run < runs.count; ++run) {
      typename S::Lanes sums = S::no_sums();
      for (int64_t left = runs.length; left > 0 && b < to.padded; --left, b += kBlock<S>, even += kBlock<S>) {
        for (int64_t i = 0; i < half; ++i) even[i] = codes[b + 2 * i];
        for (int64_t i = 0; i < half; ++i) even[half + i] = codes[b + 2 * i + 1];
        sums = S::dot(sums, weight, S::load_bytes(even));
        sums = S::dot(sums, weight, S::load_bytes(even + half));
      }
      S::store_negative(to.sums + (m * runs.count + run) * S::lanes, sums);
    }
  }
}

/// Products of `count` blocks of a weight row, added to a sum for each activation row; `whole` if all of
/// their words lie in the row.
template <class S, int count, bool whole, int rows>
inline __attribute__((always_inline)) void int8_blocks(const Tile<S>& tile, int r, int64_t block,
                                                       const int8_t* x, int64_t stride,
                                                       typename S::Lanes* sums) {
  static_assert(count == 1 || 2 * S::lanes * sizeof(uint32_t) <= 64,
                "of two blocks beside each other one fetches ahead for both");
  typename S::Words low[count], high[count];
#pragma GCC unroll 4
  for (int b = 0; b < count; ++b) {
    const auto window = whole ? S::window(S::lanes) : tile.window(block + b);
    const auto words = b % 2 ? tile.load_near(r, block + b, window) : tile.load(r, block + b, window);
    low[b] = S::low(words);
    high[b] = S::high(words);
  }
  x += block * kBlock<S>;
#pragma GCC unroll 4
  for (int m = 0; m < rows; ++m, x += stride) {
    if constexpr (S::joined > 1)
      sums[m] = S::template dot_joined<count>(sums[m], low, high, x);
    else
      sums[m] = S::dot(S::dot(sums[m], *low, S::load_bytes(x)), *high, S::load_bytes(x + kBlock<S> / 2));
  }
}

/// A few activation rows times a tile of weights, each read once. `length` is the blocks of every run, all of
/// them whole, or 0 if only `runs` gives them.
template <class S, int parts, bool symmetric, int length, int rows>
void int8_tile(const W4Layer& layer, const Int8Input& x, int64_t m0, const W4Product& product,
               int64_t first_row, const TileGroups& groups, const Runs& runs) {
  const Tile<S> tile(layer, first_row);
  const int8_t* const codes = x.codes + m0 * x.padded;
  const int64_t correction_stride = runs.count * S::lanes;
  const int32_t* const corrections = x.sums + m0 * correction_stride;
  const float* const steps = x.scales + m0 * x.groups;
  constexpr bool whole = length != 0 && rows <= 2;  // with more rows that costs registers: a tenth slower
  // Plain loops over constants, unrolled explicitly, so that the compiler keeps sums in registers.
  typename S::Sum sums[rows][kTile];
#pragma GCC unroll 4
  for (int m = 0; m < rows; ++m)
#pragma GCC unroll 4
    for (int r = 0; r < kTile; ++r) sums[m][r] = S::zero();

  // Runs of weight rows [begin, begin + count), one after another.
  const auto multiply_rows = [&]<int count>(int begin) __attribute__((always_inline)) {
    for (int64_t run = 0, block = 0; run < runs.count; ++run) {
      const int64_t next = block + runs.length;
      const int64_t end = length ? block + length : next < runs.blocks ? next : runs.blocks;
      typename S::Lanes correction[rows];
      typename S::Sum step[rows];
#pragma GCC unroll 4
      for (int m = 0; m < rows; ++m) {
        correction[m] = S::load_lanes(corrections + m * correction_stride + run * S::lanes);
        step[m] = S::template spread<parts>(steps + m * x.groups + run * parts);
      }
#pragma GCC unroll 4
      for (int r = begin; r < begin + count; ++r) {
        typename S::Lanes products[rows];
#pragma GCC unroll 4
        for (int m = 0; m < rows; ++m) products[m] = symmetric ? correction[m] : S::no_sums();
        int64_t b = block;
        for (; b + S::joined <= end; b += S::joined)
          int8_blocks<S, S::joined, whole, rows>(tile, r, b, codes, x.padded, products);
        if constexpr (length == 0 || length % S::joined)
          for (; b < end; ++b) int8_blocks<S, 1, whole, rows>(tile, r, b, codes, x.padded, products);
        const int64_t at = r * groups.stride + run * parts;
        const typename S::Sum scale = S::template spread<parts>(groups.scales + at);
#pragma GCC unroll 4
        for (int m = 0; m < rows; ++m) {
          typename S::Sum value = S::to_float(products[m]);
          if constexpr (!symmetric)
            value = S::multiply_add(value, S::to_float(correction[m]),
                                    S::template spread<parts>(groups.zeros + at));
          sums[m][r] = S::multiply_add(sums[m][r], S::multiply(value, step[m]), scale);
        }
      }
      block = end;
    }
  };
  // Weight rows share the activations they read. For a single activation row that gains nothing, and weight
  // rows are read one after another, in memory order.
  if constexpr (rows == 1)
#pragma GCC unroll 4
    for (int r = 0; r < kTile; ++r) multiply_rows.template operator()<1>(r);
  else
    multiply_rows.template operator()<kTile>(0);
  const typename S::Four bias = tile_bias<S>(layer, first_row);
#pragma GCC unroll 4
  for (int m = 0; m < rows; ++m)
    store_tile<S>(layer, product, m0 + m, first_row, S::add_four(S::reduce(sums[m]), bias));
}

template <class S, int parts, bool symmetric, int length, int rows = S::int8_rows>
void int8_tiles(const W4Layer& layer, const Int8Input& x, int64_t m, const W4Product& product, int64_t begin,
                int64_t end, const TileGroups& groups, const Runs& runs) {
  if constexpr (rows > 1)
    if (x.rows - m < rows)
      return int8_tiles<S, parts, symmetric, length, rows - 1>(layer, x, m, product, begin, end, groups,
                                                               runs);
  for (int64_t n = begin; n < end; n += kTile) {
    groups.read_rows<S>(layer, n);
    int8_tile<S, parts, symmetric, length, rows>(layer, x, m, product, n, groups, runs);
  }
}

template <class S, int parts>
void int8_product(const W4Layer& layer, const Int8Input& x, const W4Product& product, int64_t begin,
                  int64_t end, void* scratch) {
  constexpr int64_t kPassBytes = 256 << 10;  // packed weights that stay in L2 while all activation rows pass
  const TileGroups groups = TileGroups::in<S>(scratch, layer);
  const int64_t tile_bytes = kTile * ceil_div(layer.in_features, 8) * int64_t(sizeof(uint32_t));
  const int64_t step = (tile_bytes < kPassBytes ? kPassBytes / tile_bytes : 1) * kTile;
  const Runs runs = Runs::of<S>(layer);
  // The usual group is one step of the sums: straight code, without a loop.
  constexpr int usual = parts == 1 ? S::joined : 1;
  const bool straight = runs.length == usual && layer.in_features % (usual * kBlock<S>) == 0;
  const auto tiles =
      straight ? (layer.zeros ? int8_tiles<S, parts, false, usual> : int8_tiles<S, parts, true, usual>)
               : (layer.zeros ? int8_tiles<S, parts, false, 0> : int8_tiles<S, parts, true, 0>);
  for (int64_t n0 = begin; n0 < end; n0 += step)
    for (int64_t m = 0; m < x.rows; m += S::int8_rows)
      tiles(layer, x, m, product, n0, n0 + step < end ? n0 + step : end, groups, runs);
}

template <class S>
void multiply_int8(const W4Layer& layer, const Int8Input& x, void* y, Float y_type, int64_t begin,
                   int64_t end, void* scratch) {
  const W4Product product{
      .x = nullptr, .rows = x.rows, .stride = 0, .sums = nullptr, .sum_stride = 0, .y = y, .y_type = y_type};
  const int parts = block_parts<S>(layer);
  if (parts == 1) int8_product<S, 1>(layer, x, product, begin, end, scratch);
  if (parts == 2) int8_product<S, 2>(layer, x, product, begin, end, scratch);
  if constexpr (S::lanes >= 16)
    if (parts == 4) int8_product<S, 4>(layer, x, product, begin, end, scratch);
}

template <class S>
constexpr W4Int8Kernel make_int8_kernel(const char* isa) {
  return {isa, kBlock<S>, int8_scratch_bytes<S>, quantize_int8<S>, multiply_int8<S>};
}

}  // namespace
}  // namespace tarq
