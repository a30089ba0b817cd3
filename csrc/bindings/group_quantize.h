// What the CPU and CUDA bindings of group_quantize share: checks of a layer's tensors, and its lattice.
#pragma once

#include <ATen/core/Tensor.h>

#include <limits>
#include <optional>

#include "cpu/group_quantize/group_quantize.h"

namespace tarq {

// One layer, or several of one shape with a factor each: both have the same number of dimensions.
inline void check_layer(const at::Tensor& weight, const at::Tensor& upper,
                        const std::optional<at::Tensor>& order, int64_t bits, int64_t group_size) {
  const int64_t batched = weight.dim() - 2;
  TORCH_CHECK(batched == 0 || batched == 1, "weight must be [m, n] or [layers, m, n]");
  const int64_t n = weight.size(-1);
  TORCH_CHECK(upper.dim() == weight.dim() && upper.size(-2) == n && upper.size(-1) == n,
              "upper must be [n, n], or [layers, n, n]");
  TORCH_CHECK(!batched || upper.size(0) == weight.size(0), "each layer needs its factor");
  TORCH_CHECK(weight.scalar_type() == upper.scalar_type(), "weight and upper must share a dtype");
  TORCH_CHECK(!order || order->sizes() == upper.sizes().slice(0, batched + 1),
              "order must be [n], or [layers, n]");
  TORCH_CHECK(bits >= 1 && bits <= 8 && group_size >= 1, "bits or group_size out of range");
}

inline Lattice lattice(int64_t bits, bool symmetric, c10::string_view rule, at::ScalarType scale_dtype) {
  Lattice result{};
  result.max_code = (1 << bits) - 1;
  result.symmetric_zero = 1 << (bits - 1);
  result.symmetric = symmetric;
  result.reach = symmetric ? result.symmetric_zero : result.max_code;
  TORCH_CHECK(rule == "absmax" || rule == "minmax" || rule == "mse", "unknown scale rule ", rule);
  result.rule = rule == "mse" ? ScaleRule::kMse : rule == "minmax" ? ScaleRule::kMinmax : ScaleRule::kAbsmax;
  if (scale_dtype == at::kHalf) {
    result.dropped_bits = 13;
    result.least_scale = std::numeric_limits<c10::Half>::min();
    result.largest_scale = std::numeric_limits<c10::Half>::max();
  } else if (scale_dtype == at::kBFloat16) {
    result.dropped_bits = 16;
    result.least_scale = std::numeric_limits<c10::BFloat16>::min();
    result.largest_scale = std::numeric_limits<c10::BFloat16>::max();
  } else {
    TORCH_CHECK(scale_dtype == at::kFloat, "scales are float16, bfloat16 or float32, not ", scale_dtype);
    result.least_scale = std::numeric_limits<float>::min();
    result.largest_scale = std::numeric_limits<float>::max();
  }
  return result;
}

}  // namespace tarq
