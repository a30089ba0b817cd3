// group_quantize on CUDA, float32: launchers on raw device pointers. No torch here; the products between
// spans of columns are the caller's (cuBLAS). The recursion and the scale rules are those of
// cpu/group_quantize/{sweep,scales}.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cpu/group_quantize/group_quantize.h"  // Lattice

namespace tarq::cuda {

// Widest span of one launch: four columns per lane of a warp.
constexpr int kSpan = 128;

// Layers of one shape, each with its own factor. Arrays are contiguous and row-major, the layer first.
struct Span {
  int64_t layers, rows, columns, groups;
  const float* weight;    // [layers, rows, columns], in the order of the visit
  const float* upper;     // [layers, columns, columns], L in that order
  const float* feedback;  // [layers, rows, width]: Σ errors before the span · L; null for the first span
  const int* group_of;    // [layers, columns]: group of each visited column
  int64_t begin, width;   // the span's columns, width ≤ kSpan
  bool choose_scale;  // the span is a whole group whose scale is to be chosen; else scales are there already
  Lattice lattice;
  uint8_t* codes;  // [layers, rows, columns], in the order of the visit
  float* errors;   // [layers, rows, columns]
  float* scales;   // [layers, rows, groups]
  uint8_t* zeros;  // [layers, rows, groups]
  double* loss;    // [layers, rows], added to
};

// Weights of one group, [layers, rows, count], columns side by side.
struct GroupWeights {
  const float* weights;
  int64_t layer_stride, row_stride, count;
};

// Scale and zero point of group `group` from its weights, to the span's scales and zeros.
cudaError_t choose_scales(const Span& span, const GroupWeights& from, int64_t group, cudaStream_t stream);

// Quantize the columns of one span.
cudaError_t quantize_span(const Span& span, cudaStream_t stream);

}  // namespace tarq::cuda
