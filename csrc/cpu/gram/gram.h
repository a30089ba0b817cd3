// Σ_t d_t y_t x_tᵀ over positions t: what the kernels read and how one is chosen.
//
// Both operands are packed alike, `depth` positions at a time: panels of `panel` columns, position after
// position, so that one packing serves as left operand (a value to broadcast) and as right operand (a
// vector). The product adds rectangles of panel/2 rows by 3 panels, whose sums stay in registers while the
// positions pass.
//
//        packed panel p:   x[t, p·panel … (p+1)·panel − 1], t = first, first + 1, …      [steps][panel]
//
// A step is one position in fp32, or two side by side where the instruction set multiplies bf16 pairs.
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
  const int64_t* index;  // row of each position, or null: position t is row t
  const float* weight;   // by row, or null: ones
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
  Float element;  // of packed operands: f32 or bf16
  int64_t panel;
  int64_t depth;  // positions packed together: their three panels stay in the L1 cache

  /// Panels [begin, end) of positions [first, first + positions) to `out`, that of panel 0.
  void (*pack)(const GramRows& rows, int64_t first, int64_t positions, int64_t begin, int64_t end, void* out);
  /// Rows [begin, end) of columns 3·panel·j …; begin is a multiple of panel.
  void (*multiply)(const GramProduct& product, int64_t j, int64_t begin, int64_t end);

  int64_t panel_bytes(int64_t positions) const {
    return panel * (element == Float::bf16 ? (positions + 1) / 2 * 4 : positions * 4);
  }
};

/// The best kernel that isa.h allows; `bf16`: all operands are unweighted bf16.
const GramKernel& gram_kernel(bool bf16);

}  // namespace tarq
