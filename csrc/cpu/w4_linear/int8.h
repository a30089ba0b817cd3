// y = x · Wᵀ + bias with W kept as packed 4-bit codes and activations rounded to 8 bits, one scale per group:
// integer dot products, scaled once per group.
//
// A byte of codes holds two of them, so a vector of words is one of low nibbles (inputs 0, 2, 4 …) and one of
// high nibbles (1, 3, 5 …); activations are put in that order once per call. With code c, zero point z,
// activations q,
//
//        y = Σ_g  s_g · t_g · ( Σ_k c_k q_k − z_g Σ_k q_k )        s: weight scale, t: activation scale
//
// The second sum does not depend on the weights' row: it is kept, by lane, with the activations.
#pragma once

#include <cstdint>

#include "cpu/w4_linear/w4_linear.h"

namespace tarq {

/// Activations rounded to 8 bits: what `quantize` writes and `multiply` reads.
struct Int8Input {
  int8_t* codes;  // [rows, padded]: of each block the even inputs, then the odd ones
  int32_t* sums;  // [rows, groups or, where a block holds several, blocks, lanes]: −Σ q of each lane, times 8
                  // where the layer has no zero points
  float* scales;  // [rows, groups]
  int64_t rows, padded, groups;
};

/// The kernel of one instruction set.
struct W4Int8Kernel {
  const char* isa;
  int64_t block;  // inputs a vector of words holds; rows are padded with zeros to a multiple

  /// Bytes of scratch that one thread needs for `quantize` and for `multiply`.
  int64_t (*scratch_bytes)(const W4Layer& layer);
  /// Round rows [begin, end) of x [rows, in_features] (contiguous).
  void (*quantize)(const W4Layer& layer, const void* x, Float x_type, const Int8Input& to, int64_t begin,
                   int64_t end, void* scratch);
  /// Output features [begin, end) of y [rows, out_features]; begin is a multiple of kTile.
  void (*multiply)(const W4Layer& layer, const Int8Input& x, void* y, Float y_type, int64_t begin,
                   int64_t end, void* scratch);
};

/// The best kernel that isa.h allows for so many activation rows.
const W4Int8Kernel& w4_int8_kernel(const W4Layer& layer, int64_t rows);

}  // namespace tarq
