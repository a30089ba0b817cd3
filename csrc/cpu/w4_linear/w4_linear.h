// y = x · Wᵀ + bias with W kept as packed 4-bit codes: what the kernels read and how one is chosen.
//
// A row of W is a run of int32 words, eight codes each. For a few activation rows, weights are decoded in
// registers in their stored order (few_rows.h); for many, they are decoded to memory first (many_rows.h).
// With bf16 activations, a library's bf16 product is faster still from some number of rows on (see the
// binding).
#pragma once

#include <cstdint>

#include "cpu/float.h"

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

/// Activations as packed by `pack`, and the output.
struct W4Product {
  const void* x;
  int64_t rows;
  int64_t stride;     // few rows: elements from one packed row to the next
  const float* sums;  // few rows: [rows, sum_stride], each word's inputs summed; null if not needed
  int64_t sum_stride;
  void* y;  // [rows, out_features]
  Float y_type;
};

/// A few activation rows with one instruction set.
struct W4FewRows {
  const char* isa;
  Float element;    // of packed activations: f32 or bf16
  int64_t block;    // inputs a vector of words holds; packed rows are padded with zeros to a multiple
  int64_t rows;     // activation rows at most
  bool wants_sums;  // of the inputs of each word

  bool (*serves)(const W4Layer& layer);
  /// Rows of x [rows, in_features] (contiguous, `x_type`) to `out` [rows, stride]; the sums of each word's
  /// inputs to `sums` [rows, padded / 8] unless it is null.
  void (*pack)(const void* x, Float x_type, int64_t rows, int64_t in_features, void* out, int64_t stride,
               float* sums);
  /// Bytes of scratch that one thread needs.
  int64_t (*scratch_bytes)(const W4Layer& layer);
  /// Output features [begin, end) of the product; begin is a multiple of kTile.
  void (*multiply)(const W4Layer& layer, const W4Product& product, int64_t begin, int64_t end, void* scratch);

  /// Elements from one packed row to the next: a cache line more, or rows a power of two apart would share
  /// the few lines of one cache set.
  int64_t stride(int64_t in_features) const { return (in_features + block - 1) / block * block + 32; }
};

/// Any number of activation rows, in fp32, with one instruction set.
struct W4ManyRows {
  const char* isa;

  /// Panels that rows are packed in, and the bytes of all of them.
  int64_t (*panels)(int64_t rows);
  int64_t (*input_bytes)(int64_t rows, int64_t in_features);
  /// Panels [begin, end) of x [rows, in_features] (contiguous, `x_type`) to `out`, that of panel 0.
  void (*pack)(const void* x, Float x_type, int64_t rows, int64_t in_features, int64_t begin, int64_t end,
               void* out);
  /// Bytes of scratch that one thread needs for `multiply` and `decode`.
  int64_t (*scratch_bytes)(const W4Layer& layer);
  /// Output features [begin, end) of the product.
  void (*multiply)(const W4Layer& layer, const W4Product& product, int64_t begin, int64_t end, void* scratch);
  /// Output features [begin, end) of the transposed weights in bf16: columns of out [in_features, stride].
  void (*decode)(const W4Layer& layer, uint16_t* out, int64_t stride, int64_t begin, int64_t end,
                 void* scratch);
};

/// The best kernels that isa.h allows for so many activations of this type; no few-row kernel (null) where
/// none serves the layer or the rows are too many.
const W4FewRows* w4_few_rows(const W4Layer& layer, Float x_type, int64_t rows);
const W4ManyRows& w4_many_rows();

}  // namespace tarq
