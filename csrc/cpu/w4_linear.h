// y = x · Wᵀ + bias with W kept as packed 4-bit codes: what the kernels read and how one is chosen.
//
// A row of W is a run of int32 words, eight codes each. A vector holds `lanes` words, so a *block* of
// 8 · lanes inputs; step j of a block takes bits 4j … 4j+3 of every lane. Lane i of step j is therefore input
// 8i + j: decoding never shuffles across lanes, because the activations are put in that order once a call
// (`pack_input`) and every weight row then reads them as they lie.
//
//   words   w0 = c7…c1c0 | w1 = c15…c9c8 | w2 = …      step 0: c0 c8 c16 …   ·  x0 x8 x16 …
//                                                       step 1: c1 c9 c17 …   ·  x1 x9 x17 …
//
// A code becomes a weight through a 16-entry table per group (scale and zero point are in the table) where a
// register can be looked up by 16 entries; AVX2, where it cannot, turns masked codes into floats.
#pragma once

#include <cstdint>

#include "float.h"

namespace tarq {

/// Weight rows that are decoded and multiplied together; several activation rows are loaded once for them.
constexpr int kTile = 4;

/// One linear layer in the on-disk layout. Pointers are borrowed.
struct W4Layer {
  int64_t out_features, in_features;
  int64_t group_size, groups;  // groups = ceil(in_features / group_size)
  const uint32_t* codes;       // [out_features, ceil(in_features / 8)]
  const void* scales;          // [out_features, groups]
  Float scale_type;
  const uint32_t* zeros;  // [ceil(out_features / 8), groups], or null: symmetric, zero point 8
  const void* bias;       // [out_features], or null
  Float bias_type;
};

/// Activations in the kernel's own order and element type (see `pack_input`), and where the result goes.
struct W4Product {
  const void* x;  // [rows, stride]
  int64_t rows, stride;
  const float* sums;  // [rows, sum_stride], each word's inputs summed; null where the kernel wants none
  int64_t sum_stride;
  void* y;  // [rows, out_features]
  Float y_type;
};

/// The kernel of one instruction set.
struct W4Kernel {
  const char* isa;
  Float element;       // what activations and decoded weights are held in: f32 or bf16
  int64_t block;       // inputs a vector of words holds; packed rows are padded with zeros to a multiple
  bool wants_sums;     // of the inputs of each word, for `fused`
  int64_t fused_rows;  // up to this many activation rows, weights are decoded in registers (`fused`)
  int64_t tiled_rows;  // up to this many, through a scratch in cache (`tiled`); above, a library GEMM

  /// Elements from one packed row to the next.
  int64_t (*row_stride)(int64_t in_features);
  /// Rows of x [rows, in_features] (contiguous, `x_type`) to `out` [rows, stride] in block order; the sums of
  /// each word's inputs to `sums` [rows, padded / 8] unless it is null.
  void (*pack_input)(const void* x, Float x_type, int64_t rows, int64_t in_features, void* out,
                     int64_t stride, float* sums);
  /// Bytes of scratch that one thread needs for `fused` / `tiled` / `decode`.
  int64_t (*scratch_bytes)(const W4Layer& layer);
  /// Output features [begin, end) of the product; begin is a multiple of kTile.
  void (*fused)(const W4Layer& layer, const W4Product& product, int64_t begin, int64_t end, void* scratch);
  void (*tiled)(const W4Layer& layer, const W4Product& product, int64_t begin, int64_t end, void* scratch);
  /// Dense weights of output features [begin, end), whose products with packed rows are those of the layer:
  /// out [end − begin, in_features padded to blocks]; begin is a multiple of kTile.
  void (*decode)(const W4Layer& layer, void* out, int64_t begin, int64_t end, void* scratch);
};

/// The best kernel for activations of this type that isa.h allows.
const W4Kernel& w4_kernel(Float x_type);

extern const W4Kernel kW4Scalar;
#if defined(__x86_64__)
extern const W4Kernel kW4Avx2;
extern const W4Kernel kW4Avx512;
extern const W4Kernel kW4Avx512Bf16;
#endif

}  // namespace tarq
