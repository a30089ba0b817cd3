// group_quantize on the CPU: the factor H = L Lᵀ with L upper triangular, the column sweep that uses it, and
// the refinement of what it left under H itself.
//
// Nothing here depends on torch or threads. The caller divides the work (blocks, tiles of rows) among its
// threads; a tile's result does not depend on the thread, so results do not depend on the thread count.
#pragma once

#include <cstdint>

namespace tarq {

enum class ScaleRule { kAbsmax, kMinmax, kMse };

// The lattice, and the precision its scales are stored in.
struct Lattice {
  int max_code;          // codes run from 0 to max_code
  int symmetric_zero;    // zero point of a symmetric group
  bool symmetric;        // else an integer zero point per group
  ScaleRule rule;        // how a group's scale is chosen
  int dropped_bits;      // float32 mantissa bits that the stored scale lacks: float16 13, bfloat16 16
  double least_scale;    // smallest normal number of the stored dtype
  double largest_scale;  // largest finite one
  int reach;             // how many scales the largest weight may be away from zero
};

// One layer. Matrices are row-major and contiguous; `order` and `position` are null for natural order.
template <typename T>
struct Sweep {
  int64_t rows, columns, group_size;
  const T* weight;          // [rows, columns], natural order
  const T* packed;          // L as packed by `pack`, in the order of the visit
  const int64_t* order;     // visit k goes to column order[k]
  const int64_t* position;  // inverse of order
  Lattice lattice;
  uint8_t* codes;  // [rows, columns], natural order
  T* scales;       // [rows, groups], exact in the stored dtype
  uint8_t* zeros;  // [rows, groups]
  double* loss;    // [rows]: ‖(w − ŵ) L‖²
};

// A layer that is quantized already and is to be refined. Everything is in natural order.
template <typename T>
struct Refinement {
  int64_t rows, columns, group_size, passes;
  const T* target;  // [rows, columns]
  const T* packed;  // H as packed by `pack_square`
  Lattice lattice;
  const uint8_t* zeros;  // [rows, groups]
  uint8_t* codes;        // [rows, columns], from here on in and out
  T* scales;             // [rows, groups], exact in the stored dtype
  double* loss;          // [rows]: (v − v̂) H (v − v̂)ᵀ
};

// The kernels of one instruction set.
template <typename T>
struct GroupQuantizeKernels {
  int64_t row_tile;      // weight rows (and matrix columns) that move through the vector registers together
  int64_t factor_block;  // columns per block of the factorisation, a multiple of row_tile

  // --- H = L Lᵀ, in place in the upper triangle of a [n, n], from the last block of columns to the first ---
  // Factor the diagonal block [begin, end); 0, or 1 + the column whose pivot is not positive.
  int64_t (*factor_diagonal)(T* a, int64_t n, int64_t begin, int64_t end);
  // That block, flipped and packed for factor_rows; `packed` holds factor_block² + 8·factor_block elements.
  void (*pack_diagonal)(const T* a, int64_t n, int64_t begin, int64_t end, T* packed);
  // Solve the rows of tile `tile` above the block; keep them in `left` and `right` ([begin · factor_block]).
  void (*factor_rows)(T* a, int64_t n, int64_t begin, int64_t end, const T* packed, int64_t tile, T* left,
                      T* right);
  // Subtract the block's outer product from the columns of tile `tile` (upper triangle).
  void (*factor_update)(T* a, int64_t n, int64_t begin, int64_t end, const T* left, const T* right,
                        int64_t tile);

  // --- the sweep ---
  int64_t (*packed_size)(int64_t n);                                        // elements of a packed L
  int64_t (*pack_chunks)(int64_t n);                                        // pieces that pack separately
  void (*pack)(const T* upper, int64_t n, int64_t chunk, T* packed);        // pack one piece
  int64_t (*workspace_size)(int64_t n, int64_t group_size, int64_t tiles);  // elements for `tiles` tiles
  // Quantize the rows of tiles [begin, end).
  void (*sweep)(const Sweep<T>& layer, int64_t begin, int64_t end, T* workspace);

  // --- the refinement ---
  int64_t (*packed_square_size)(int64_t n);                                   // elements of a packed H
  void (*pack_square)(const T* matrix, int64_t n, int64_t chunk, T* packed);  // pieces are those of `pack`
  int64_t (*refine_workspace_size)(int64_t n, int64_t group_size,
                                   int64_t tiles);  // elements for `tiles` tiles
  // Refine the rows of tiles [begin, end).
  void (*refine)(const Refinement<T>& layer, int64_t begin, int64_t end, T* workspace);
};

// Kernels of the best instruction set that isa.h allows.
template <typename T>
const GroupQuantizeKernels<T>& group_quantize_kernels();

}  // namespace tarq
