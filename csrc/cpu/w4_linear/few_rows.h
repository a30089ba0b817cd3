// A few activation rows: weights live in registers only, read once for all rows. Over a description `S` of an
// instruction set, see engine.h.
//
// A word is a lane, and a vector of words a *block* of 8 · lanes inputs: decoding never shuffles across
// lanes, because the activations are put in that order once per call, and every weight row then reads them
// in sequence.
//
//   words   w0 = c7…c1c0 | w1 = c15…c9c8 | w2 = …      step 0: c0 c8 c16 …   ·  x0 x8 x16 …
//                                                       step 1: c1 c9 c17 …   ·  x1 x9 x17 …
#pragma once

#include <cstring>

#include "cpu/w4_linear/layout.h"

namespace tarq {
namespace {

/// Products are divided by this, in the activations or in the codes, and their sums multiplied at the end:
/// they are scaled only then, and must not overflow before.
constexpr float kHeadroom = 256.0f;

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

/// How codes are read: minus their zero point (`each`), or unchanged if S subtracts the zero points' share of
/// the products from the sums.
template <class S, int parts, bool each>
struct CodesOf {
  using Type = typename S::template Centred<parts>;
};
template <class S, int parts>
struct CodesOf<S, parts, false> {
  using Type = typename S::Codes;
};
template <class S, int parts, bool each>
using Codes = typename CodesOf<S, parts, each>::Type;

/// `rows` activation rows times weight rows [r0, r0 + count) of a tile; sums are stored by row, then weight
/// row.
template <class S, int parts, int rows, int count, bool each>
inline void fused_piece(const W4Layer& layer, const W4Product& product, const Tile<S>& tile, int r0,
                        const TileGroups& groups, typename S::Sum (*sums)[kTile]) {
  using Sum = typename S::Sum;
  const typename S::Element* x[rows];
  for (int m = 0; m < rows; ++m)
    x[m] = static_cast<const typename S::Element*>(product.x) + m * product.stride;
  for (int m = 0; m < rows; ++m)
    for (int r = 0; r < count; ++r) sums[m][r0 + r] = S::zero();
  for_runs<S, parts>(layer, [&](int64_t first, int64_t end, int64_t group) __attribute__((always_inline)) {
    Sum part[rows][count];
    for (int m = 0; m < rows; ++m)
      for (int r = 0; r < count; ++r) part[m][r] = S::zero();
    Codes<S, parts, each> decode[count];
    for (int r = 0; r < count; ++r) decode[r].read(groups.zeros + (r0 + r) * groups.stride + group);
    for (int64_t b = first; b < end; ++b) {
      const auto steps = S::steps_in_memory();  // loaded here: hoisted, they would take all registers
      const typename S::Window window = tile.window(b);
      typename S::Words words[count];
      for (int r = 0; r < count; ++r) words[r] = tile.load(r0 + r, b, window);
      // The last step first: if it shifts words, they need not be held in the meantime.
#pragma GCC unroll 8
      for (int j = S::steps - 1; j >= 0; --j) {
        typename S::Vector codes[count];
        for (int r = 0; r < count; ++r) codes[r] = decode[r](words[r], steps, j);
        for (int m = 0; m < rows; ++m) {
          const auto input = S::kept_in_register(S::load(x[m] + b * kBlock<S> + j * S::width));
          for (int r = 0; r < count; ++r) part[m][r] = S::dot(part[m][r], codes[r], input);
        }
      }
    }
    for (int r = 0; r < count; ++r) {
      const Sum scale = S::template spread<parts>(groups.scales + (r0 + r) * groups.stride + group);
      for (int m = 0; m < rows; ++m) sums[m][r0 + r] = S::multiply_add(sums[m][r0 + r], part[m][r], scale);
    }
  });
}

// Sharing a single activation row gains nothing: each weight row reads it from L1 as fast. Reading one weight
// row after another leaves registers for four sums, and memory is read in order.

/// Whether S::together blocks from a multiple of it on lie in one group.
template <class S>
bool groups_hold_blocks(const W4Layer& layer) {
  return layer.groups == 1 || layer.group_size % (S::together * kBlock<S>) == 0;
}

/// A block's codes times its inputs, added to four sums in turn; `fresh` begins them.
template <class S, bool fresh, class Codes, class Steps>
__attribute__((always_inline)) inline void add_block(typename S::Words words, const typename S::Element* x,
                                                     const Steps& steps, const Codes& decode,
                                                     typename S::Sum* sums) {
#pragma GCC unroll 8
  for (int j = S::steps - 1; j >= 0; --j) {
    const typename S::Vector codes = decode(words, steps, j), input = S::load(x + j * S::width);
    typename S::Sum& sum = sums[j % 4];
    sum = fresh && j >= S::steps - 4 ? S::product(codes, input) : S::dot(sum, codes, input);
  }
}

/// What `fused_piece` computes, of one activation row and weight row r of a tile, blocks lying in one group.
template <class S, bool each>
inline typename S::Sum single_row(const W4Layer& layer, const W4Product& product, const Tile<S>& tile, int r,
                                  const TileGroups& groups) {
  constexpr int together = S::together;
  const auto steps = S::steps_in_registers();
  const int64_t blocks = padded_inputs<S>(layer) / kBlock<S>;
  const int64_t whole = tile.words / (together * S::lanes) * together, run = blocks_of_group<S>(layer);
  const float *scale = groups.scales + r * groups.stride, *zero = groups.zeros + r * groups.stride;
  const typename S::Element* x = static_cast<const typename S::Element*>(product.x);
  typename S::Sum sum = S::zero(), part[4];
  const auto add_parts = [&] {
    const typename S::Sum total = S::add(S::add(part[0], part[1]), S::add(part[2], part[3]));
    sum = S::multiply_add(sum, total, S::template spread<1>(scale));
  };
  Codes<S, 1, each> decode;
  int64_t b = 0;
  for (int64_t left = run; b < whole; b += together) {  // straight code: a tenth faster
    decode.read(zero);
    add_block<S, true>(tile.load(r, b, S::window(S::lanes)), x, steps, decode, part);
    x += kBlock<S>;
    if constexpr (together == 2) {
      add_block<S, false>(tile.load_near(r, b + 1, S::window(S::lanes)), x, steps, decode, part);
      x += kBlock<S>;
    }
    add_parts();
    if ((left -= together) > 0) continue;
    ++scale, ++zero, left = run;
  }
  decode.read(zero);
  for (; b < blocks; ++b, x += kBlock<S>) {
    add_block<S, true>(tile.load(r, b, tile.window(b)), x, steps, decode, part);
    add_parts();
  }
  return sum;
}

template <class S, int parts, bool each, int rows>
void fused_rows(const W4Layer& layer, const W4Product& product, int64_t begin, int64_t end, void* scratch) {
  constexpr int count = S::weight_rows(rows);
  const TileGroups groups = TileGroups::in<S>(scratch, layer);
  const auto deferred = [&] {
    if constexpr (!each)
      return typename S::Deferred(static_cast<char*>(scratch) + TileGroups::bytes<S>(layer), layer, product);
    else
      return nullptr;
  }();
  const bool row_by_row = parts == 1 && rows == 1 && groups_hold_blocks<S>(layer);
  for (int64_t n = begin; n < end; n += kTile) {
    groups.read_rows<S>(layer, n);
    const Tile<S> tile(layer, n);
    const typename S::Four bias = tile_bias<S>(layer, n);
    typename S::Sum sums[rows][kTile];
    if (row_by_row)
      for (int r = 0; r < kTile; ++r) sums[0][r] = single_row<S, each>(layer, product, tile, r, groups);
    else
      for (int r = 0; r < kTile; r += count)
        fused_piece<S, parts, rows, count, each>(layer, product, tile, r, groups, sums);
    if constexpr (!each) deferred.template subtract<rows>(groups, sums);
    for (int m = 0; m < rows; ++m) store_tile<S>(layer, product, m, n, S::finish(S::reduce(sums[m]), bias));
  }
}

template <class S, int parts, bool each, int rows = S::fused_rows>
void fused_tiles(const W4Layer& layer, const W4Product& product, int64_t begin, int64_t end, void* scratch) {
  if constexpr (rows > 1)
    if (product.rows < rows)
      return fused_tiles<S, parts, each, rows - 1>(layer, product, begin, end, scratch);
  fused_rows<S, parts, each, rows>(layer, product, begin, end, scratch);
}

template <class S, int parts>
void fused_parts(const W4Layer& layer, const W4Product& product, int64_t begin, int64_t end, void* scratch) {
  if constexpr (S::defers_zeros)
    if (!S::has_outlier(product)) return fused_tiles<S, parts, false>(layer, product, begin, end, scratch);
  fused_tiles<S, parts, true>(layer, product, begin, end, scratch);
}

/// Whether there is a `fused_parts` for the layer's groups.
template <class S>
bool serves_few(const W4Layer& layer) {
  const int parts = block_parts<S>(layer);
  return parts > 0 && (parts <= 4 || S::fused_by_word);
}

/// Output features [begin, end) of a product of up to S::fused_rows rows.
template <class S>
void multiply_few(const W4Layer& layer, const W4Product& product, int64_t begin, int64_t end, void* scratch) {
  const int parts = block_parts<S>(layer);
  if (parts == 1) fused_parts<S, 1>(layer, product, begin, end, scratch);
  if constexpr (S::lanes > 1) {
    if (parts == 2) fused_parts<S, 2>(layer, product, begin, end, scratch);
    if (parts == 4) fused_parts<S, 4>(layer, product, begin, end, scratch);
  }
  if constexpr (S::lanes > 4 && S::fused_by_word)
    if (parts == S::lanes) fused_parts<S, S::lanes>(layer, product, begin, end, scratch);
}

template <class S>
int64_t few_scratch_bytes(const W4Layer& layer) {
  if constexpr (S::defers_zeros) return TileGroups::bytes<S>(layer) + S::Deferred::bytes(layer);
  return TileGroups::bytes<S>(layer);
}

/// Rows of x (contiguous) in block order; the sums of each word's inputs to `sums` unless it is null.
template <class S>
void pack_blocks(const void* x, Float x_type, int64_t rows, int64_t in_features, void* out, int64_t stride,
                 float* sums) {
  const int64_t blocks = ceil_div(in_features, kBlock<S>), size = x_type == Float::f32 ? 4 : 2;
  for (int64_t m = 0; m < rows; ++m) {
    typename S::Element* to = static_cast<typename S::Element*>(out) + m * stride;
    for (int64_t b = 0; b < blocks; ++b, to += kBlock<S>) {
      const int64_t first = m * in_features + b * kBlock<S>, left = in_features - b * kBlock<S>;
      float* const block_sums = sums ? sums + (m * blocks + b) * S::lanes : nullptr;
      if (left >= kBlock<S>) {
        S::pack_block(x, x_type, first, to, block_sums);
      } else {
        alignas(float) char tail[kBlock<S> * sizeof(float)] = {};
        std::memcpy(tail, static_cast<const char*>(x) + first * size, size_t(left * size));
        S::pack_block(tail, x_type, 0, to, block_sums);
      }
    }
  }
}

}  // namespace
}  // namespace tarq
