// Zero points multiplied with the sums of a group's activations instead of subtracted from each code: one
// multiply-add per group instead of one per code. Included after avx2.cpp's `#pragma GCC target` and
// <immintrin.h>.
#pragma once

#include <algorithm>

#include "cpu/w4_linear/x86.h"

namespace tarq {
namespace {

/// The sums of an activation row's inputs that zero points are multiplied with, in the order of TileGroups.
template <class S>
struct DeferredZeros {
  float* totals;   // [S::fused_rows, stride]
  int64_t stride;  // entries of the padded row, in whole vectors

  static int64_t bytes(const W4Layer& layer) {
    return S::fused_rows * padded(layer) * int64_t(sizeof(float));
  }

  DeferredZeros(void* scratch, const W4Layer& layer, const W4Product& product)
      : totals(static_cast<float*>(scratch)), stride(padded(layer)) {
    const int64_t words = layer.groups == 1               ? product.sum_stride
                          : TileGroups::by_word<S>(layer) ? 1
                                                          : layer.group_size / 8;
    for (int64_t m = 0; m < product.rows; ++m) {
      const float *word = product.sums + m * product.sum_stride, *const end = word + product.sum_stride;
      for (int64_t g = 0; g < stride; ++g) {
        float total = 0.0f;
        for (int64_t w = 0; w < words && word < end; ++w) total += *word++;
        totals[m * stride + g] = total;
      }
    }
  }

  /// Subtracts the zero points' share of the products from the sums.
  template <int rows>
  void subtract(const TileGroups& groups, __m256 (*sums)[kTile]) const {
    for (int64_t g = 0; g < groups.stride; g += S::width) {
      const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
      const __m256i there = _mm256_cmpgt_epi32(_mm256_set1_epi32(int(groups.stride - g)), lane);
      __m256 total[rows];
      for (int m = 0; m < rows; ++m) total[m] = _mm256_loadu_ps(totals + m * stride + g);
      for (int r = 0; r < kTile; ++r) {
        const int64_t at = r * groups.stride + g;
        const __m256 zero = _mm256_mul_ps(_mm256_maskload_ps(groups.scales + at, there),
                                          _mm256_maskload_ps(groups.zeros + at, there));
        for (int m = 0; m < rows; ++m) sums[m][r] = _mm256_fnmadd_ps(zero, total[m], sums[m][r]);
      }
    }
  }

 private:
  static int64_t padded(const W4Layer& layer) { return round_up(TileGroups::row_stride<S>(layer), S::width); }
};

/// Whether the largest input of some row is a sixteenth or more of its sum of magnitudes, or is not a number.
template <class S>
bool has_outlier_row(const W4Product& product) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  for (int64_t m = 0; m < product.rows; ++m) {
    const float* x = static_cast<const float*>(product.x) + m * product.stride;
    __m256 largest = _mm256_setzero_ps(), sum = largest;
    for (int64_t b = 0; b < product.sum_stride / S::width; ++b, x += kBlock<S>)
#pragma GCC unroll 8
      for (int j = 0; j < S::steps; ++j) {
        const __m256 input = _mm256_mul_ps(_mm256_loadu_ps(x + j * S::width), _mm256_set1_ps(S::unit(j)));
        const __m256 magnitude = _mm256_andnot_ps(sign, input);
        largest = _mm256_max_ps(largest, magnitude);
        sum = _mm256_add_ps(sum, magnitude);
      }
    alignas(32) float most[S::width], total[S::width];
    _mm256_store_ps(most, largest);
    _mm256_store_ps(total, sum);
    float largest_of_all = 0.0f, total_of_all = 0.0f;
    for (int i = 0; i < S::width; ++i) {
      largest_of_all = std::max(largest_of_all, most[i]);
      total_of_all += total[i];
    }
    if (!(largest_of_all * 16 < total_of_all)) return true;
  }
  return false;
}

}  // namespace
}  // namespace tarq
