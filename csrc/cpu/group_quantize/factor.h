// H = L Lᵀ, block by block from the last columns to the first. See vectors.h.
#pragma once

#include "cpu/group_quantize/vectors.h"

namespace tarq::TARQ_ISA {
namespace {

template <typename T>
T dot(const T* x, const T* y, int64_t n) {
  constexpr int64_t width = Simd<T>::kWidth;
  Vec<T> sums = {};
  int64_t k = 0;
  for (; k + width <= n; k += width) sums += load(x + k) * load(y + k);
  T sum = 0;
  for (int64_t lane = 0; lane < width; ++lane) sum += sums[lane];
  for (; k < n; ++k) sum += x[k] * y[k];
  return sum;
}

template <typename T>
int64_t factor_diagonal(T* a, int64_t n, int64_t begin, int64_t end) {
  for (int64_t j = end - 1; j >= begin; --j) {
    T* row = a + j * n;
    const T pivot = row[j] - dot(row + j + 1, row + j + 1, end - j - 1);
    if (!(pivot > 0) || !(pivot - pivot == 0)) return j + 1;  // not positive, NaN, infinite
    row[j] = __builtin_sqrt(pivot);
    for (int64_t i = begin; i < j; ++i) {
      T* above = a + i * n;
      above[j] = (above[j] - dot(above + j + 1, row + j + 1, end - j - 1)) / row[j];
    }
  }
  return 0;
}

// X L_bbᵀ = A with the columns of X and A reversed is X' U = A' with U upper: the recursion of the sweep.
template <typename T>
void pack_diagonal(const T* a, int64_t n, int64_t begin, int64_t end, T* packed) {
  const int64_t size = end - begin;
  for (int64_t first = 0; first < size; first += kPanel, packed += kFactorBlock * kPanel)
    for (int64_t i = 0; i < size; ++i)
      for (int64_t j = 0; j < kPanel; ++j) {
        const int64_t column = first + j;
        packed[i * kPanel + j] =
            i <= column && column < size ? a[(end - 1 - column) * n + end - 1 - i] : T(0);
      }
}

template <typename T>
void factor_rows(T* a, int64_t n, int64_t begin, int64_t end, const T* packed, int64_t tile, T* left,
                 T* right) {
  const int64_t size = end - begin;
  T* rows = a + tile * kTile<T> * n;
  T* x = right + tile * kTile<T> * kFactorBlock;
  const auto reversed = [end](int64_t j) { return end - 1 - j; };
  to_tile(rows, n, kTile<T>, size, reversed, x);

  for (int64_t first = 0; first < size; first += kPanel, packed += kFactorBlock * kPanel) {
    Accumulators<T> acc = {};
    walk_panel<T>(packed, x, first, 0, first, smaller(first + kPanel, size), acc,
                  [](int, int, T pivot, Vec<T> sum, const T* value)
                      __attribute__((always_inline)) { return (load(value) - sum) / pivot; });
  }

  from_tile(x, n, size, reversed, rows);
  for (int64_t r = 0; r < kTile<T>; r += kPanel) {
    T* panel = left + (tile * kTile<T> + r) * kFactorBlock;
    for (int64_t k = 0; k < size; ++k)
      for (int64_t j = 0; j < kPanel; ++j) panel[k * kPanel + j] = x[k * kTile<T> + r + j];
  }
}

template <typename T>
void factor_update(T* a, int64_t n, int64_t begin, int64_t end, const T* left, const T* right, int64_t tile) {
  const int64_t first = tile * kTile<T>;
  for (int64_t row = 0; row < first + kTile<T>; row += kPanel) {
    T* out = a + row * n + first;
#pragma GCC unroll 8
    for (int j = 0; j < kPanel; ++j)
      for (int64_t r = 0; r < kTile<T>; r += 64 / sizeof(T)) __builtin_prefetch(out + j * n + r, 1);
    Accumulators<T> acc = {};
    multiply(left + row * kFactorBlock, right + first * kFactorBlock, end - begin, acc);
#pragma GCC unroll 8
    for (int j = 0; j < kPanel; ++j)
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) {
        T* at = out + j * n + v * Simd<T>::kWidth;
        store<T>(at, load(at) - acc[j][v]);
      }
  }
}

}  // namespace
}  // namespace tarq::TARQ_ISA
