// Σ_t d_t y_t x_tᵀ over positions t: what the kernels read and how one is chosen.
//
// Operands are packed `depth` positions at a time: panels of `panel` columns, position after position. The
// product adds rectangles of packed rows by `width` panels, whose sums stay in registers while the positions
// pass. With vectors one packing serves as left operand (a value to broadcast) and as right operand (a
// vector):
//
//        packed panel p:   x[t, p·panel … (p+1)·panel − 1], t = first, first + 1, …      [steps][panel]
//
// where a step is one position in fp32, or two side by side where the instruction set multiplies bf16 pairs.
// Tiles need two layouts, one the transpose of the other (avx512_amx.cpp).
#pragma once

#include <cstdint>

#include "cpu/float.h"

namespace tarq {

/// Rows of a matrix and which of them, in which order, with which weight. Pointers are borrowed.
struct GramRows {
  const void* data;
  Float type;
  int64_t stride;  // elements from one row to the next; columns are contiguous
  int64_t columns;
  const int64_t* index;          // row of each position, or null: position t is row t
  const float* weight;           // by row, or null: ones
  const void* origin = nullptr;  // a matrix of the same type that is subtracted in fp32, or null
  int64_t origin_stride = 0;
};

/// One depth's worth of packed operands and where their product goes.
struct GramProduct {
  const void* left;   // packed, `rows` columns
  const void* right;  // packed, `columns` columns
  int64_t positions;
  float* out;  // [rows, columns]
  int64_t rows, columns;
  bool add;       // to what `out` holds, instead of writing over it
  bool triangle;  // only what is on and below the diagonal is wanted
};

/// The kernel of one instruction set.
struct GramKernel {
  const char* isa;
  int64_t panel;
  int64_t width;
  int64_t depth;          // positions packed together
  int64_t rows_per_task;  // of the product, a multiple of 2·panel
  bool two_layouts;       // a left operand is packed differently from a right one

  /// Bytes of a packed panel.
  int64_t (*left_bytes)(int64_t positions);
  int64_t (*right_bytes)(int64_t positions);
  /// Panels [begin, end) of positions [first, first + positions) to `left` and to `right`, those of panel 0;
  /// either may be null.
  void (*pack)(const GramRows& rows, int64_t first, int64_t positions, int64_t begin, int64_t end, void* left,
               void* right);
  /// Rows [begin, end) of columns width·panel·j …; begin is a multiple of 2·panel.
  void (*multiply)(const GramProduct& product, int64_t j, int64_t begin, int64_t end);
};

/// The best kernel that isa.h allows for rows of these types; `weighted`: those of the left operand have
/// weights; `drift`: they have an origin. They are of the right operand's type, or of fp32 and have none.
const GramKernel& gram_kernel(Float left, Float right, bool weighted, bool drift);

}  // namespace tarq
