// The int8 kernel's loops over a description `S` of an instruction set; see w4_linear_body.h, whose tiles,
// scales and epilogue they share. Beyond what those need, S has
//   Lanes    integer sums of four products each;  Bytes: four int8 activations a lane
//   low, high            the nibbles of Words as bytes
//   load_bytes, no_sums, load_sums, store_negative, eights, ones
//   dot(lanes, Words, Bytes)   unsigned times signed bytes
//   to_float(Lanes);  spread<parts>(values) a block's groups, each in the lanes of its words;  multiply,
//   multiply_add int8_rows            activation rows of a register tile
#pragma once

#include <cstdint>
#include <cstring>

#include "w4_linear_body.h"
#include "w4_linear_int8.h"

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

template <class S>
void quantize_int8(const W4Layer& layer, const void* x, Float x_type, const Int8Input& to, int64_t begin,
                   int64_t end, void* scratch) {
  constexpr int64_t half = kBlock<S> / 2;
  const int64_t k = layer.in_features, group = layer.groups == 1 ? k : layer.group_size;
  float* const values = static_cast<float*>(scratch);
  int8_t* const codes = reinterpret_cast<int8_t*>(values + to.padded);
  for (int64_t m = begin; m < end; ++m) {
    S::to_float(x, x_type, m * k, k, values);
    for (int64_t g = 0; g < to.groups; ++g) {
      const int64_t first = g * group, left = k - first;
      const int64_t count = left < 0 ? 0 : left < group ? left : group;
      to.scales[m * to.groups + g] = quantize_group(values + first, count, codes + first);
    }
    std::memset(codes + k, 0, size_t(to.padded - k));
    for (int64_t b = 0; b < to.padded; b += kBlock<S>) {
      int8_t* __restrict__ const even = to.codes + m * to.padded + b;
      for (int64_t i = 0; i < half; ++i) even[i] = codes[b + 2 * i];
      for (int64_t i = 0; i < half; ++i) even[half + i] = codes[b + 2 * i + 1];
      const typename S::Words weight = layer.zeros ? S::ones() : S::eights();
      typename S::Lanes sums = S::dot(S::no_sums(), weight, S::load_bytes(even));
      sums = S::dot(sums, weight, S::load_bytes(even + half));
      S::store_negative(to.sums + (m * to.padded + b) / 8, sums);
    }
  }
}

/// A few activation rows times a tile of weights, each read once.
template <class S, int parts, bool symmetric, int rows = S::int8_rows>
void int8_tile(const W4Layer& layer, const Int8Input& x, int64_t m0, const W4Product& product,
               int64_t first_row, const TileGroups& groups) {
  if constexpr (rows > 1)
    if (x.rows - m0 < rows)
      return int8_tile<S, parts, symmetric, rows - 1>(layer, x, m0, product, first_row, groups);
  const Tile<S> tile(layer, first_row);
  const int64_t blocks = x.padded / kBlock<S>, stride = x.padded, sum_stride = blocks * S::lanes;
  const int64_t run = parts > 1 || layer.groups > 1 ? layer.group_size / kBlock<S> : blocks;
  const int8_t* codes = x.codes + m0 * stride;
  const int32_t* corrections = x.sums + m0 * sum_stride;
  const float* steps = x.scales + m0 * x.groups;
  // Plain loops over constants, unrolled by name: so the compiler keeps all sums in registers.
  typename S::Sum sums[rows][kTile];
#pragma GCC unroll 4
  for (int m = 0; m < rows; ++m)
#pragma GCC unroll 4
    for (int r = 0; r < kTile; ++r) sums[m][r] = S::zero();
  for (int64_t b = 0, left = run, group = 0; b < blocks; ++b) {
    const typename S::Window window = tile.window(b);
    typename S::Words low[kTile], high[kTile];
#pragma GCC unroll 4
    for (int r = 0; r < kTile; ++r) {
      const typename S::Words words = tile.load(r, b, window);
      low[r] = S::low(words);
      high[r] = S::high(words);
    }
    const int8_t* inputs = codes + b * kBlock<S>;
    const int32_t* from_sums = corrections + b * S::lanes;
    const float* from_steps = steps + group;
#pragma GCC unroll 4
    for (int m = 0; m < rows; ++m, inputs += stride, from_sums += sum_stride, from_steps += x.groups) {
      const typename S::Bytes even = S::load_bytes(inputs), odd = S::load_bytes(inputs + kBlock<S> / 2);
      const typename S::Lanes correction = S::load_sums(from_sums);
      const typename S::Sum step = S::template spread<parts>(from_steps);
#pragma GCC unroll 4
      for (int r = 0; r < kTile; ++r) {
        const int64_t at = r * groups.stride + group;
        const typename S::Lanes from = symmetric ? correction : S::no_sums();
        typename S::Sum value = S::to_float(S::dot(S::dot(from, low[r], even), high[r], odd));
        if constexpr (!symmetric)
          value =
              S::multiply_add(value, S::to_float(correction), S::template spread<parts>(groups.zeros + at));
        value = S::multiply(value, step);
        sums[m][r] = S::multiply_add(sums[m][r], value, S::template spread<parts>(groups.scales + at));
      }
    }
    if constexpr (parts > 1) {
      group += parts;
    } else if (--left == 0) {
      left = run;
      ++group;
    }
  }
  const typename S::Four bias = tile_bias<S>(layer, first_row);
#pragma GCC unroll 4
  for (int m = 0; m < rows; ++m) finish<S>(layer, product, m0 + m, first_row, sums[m], bias);
}

template <class S, int parts>
void int8_product(const W4Layer& layer, const Int8Input& x, const W4Product& product, int64_t begin,
                  int64_t end, void* scratch) {
  constexpr int64_t kPassBytes = 256 << 10;  // packed weights that stay in L2 while all activation rows pass
  const TileGroups groups = TileGroups::in<S>(scratch, layer);
  const int64_t tile_bytes = kTile * ceil_div(layer.in_features, 8) * int64_t(sizeof(uint32_t));
  const int64_t step = (tile_bytes < kPassBytes ? kPassBytes / tile_bytes : 1) * kTile;
  for (int64_t n0 = begin; n0 < end; n0 += step) {
    const int64_t n1 = n0 + step < end ? n0 + step : end;
    for (int64_t m = 0; m < x.rows; m += S::int8_rows) {
      for (int64_t n = n0; n < n1; n += kTile) {
        groups.read_rows<S>(layer, n);
        if (layer.zeros)
          int8_tile<S, parts, false>(layer, x, m, product, n, groups);
        else
          int8_tile<S, parts, true>(layer, x, m, product, n, groups);
      }
    }
  }
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
