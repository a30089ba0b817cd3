// group_quantize on CUDA, float32: launchers on raw device pointers. No torch here; the products between
// spans of columns are the caller's (cuBLAS). The recursion and the scale rules are those of
// cpu/group_quantize_kernels.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cpu/group_quantize.h"  // Lattice

namespace tarq::cuda {

// Widest span of one launch: four columns per lane of a warp.
constexpr int kSpan = 128;

// Matrices are row-major; every row of `weight`, `codes` and `errors` has `columns` elements.
struct Span {
  int64_t rows, columns, groups;
  const float* weight;   // in the order of the visit
  const float* upper;    // [columns, columns], L in that order
  const float* ahead;    // [rows, width]: Σ errors before the span · L; null for the first span
  const int* group_of;   // [columns]: group of each visited column
  int64_t begin, width;  // the span's columns, width ≤ kSpan
  bool choose_scale;  // the span is a whole group whose scale is to be chosen; else scales are there already
  Lattice lattice;
  uint8_t* codes;  // in the order of the visit
  float* errors;
  float* scales;  // [rows, groups]
  uint8_t* zeros;
  double* loss;  // [rows], added to
};

// Scale and zero point of group `group` from its weights, [rows, count] with rows `stride` apart.
cudaError_t choose_scales(const float* weights, int64_t stride, int64_t rows, int64_t count, int64_t group,
                          int64_t groups, const Lattice& lattice, float* scales, uint8_t* zeros,
                          cudaStream_t stream);

// Quantize the columns of one span.
cudaError_t quantize_span(const Span& span, cudaStream_t stream);

}  // namespace tarq::cuda
