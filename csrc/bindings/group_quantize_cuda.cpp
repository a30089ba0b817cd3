// group_quantize on CUDA: the launchers of cuda/group_quantize.h, with the matrix products left to torch.
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_solve_triangular.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "bindings/group_quantize.h"
#include "cuda/group_quantize.h"

namespace {

constexpr int64_t kMaxLayers = 65535;  // of a grid's second dimension

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> group_quantize(
    const at::Tensor& weight, const at::Tensor& upper, const std::optional<at::Tensor>& order, int64_t bits,
    int64_t group_size, bool symmetric, c10::string_view rule, at::ScalarType scale_dtype) {
  tarq::check_layer(weight, upper, order, bits, group_size);
  TORCH_CHECK(weight.scalar_type() == at::kFloat, "the CUDA kernel takes float32");
  if (weight.dim() == 2) {
    const auto [codes, scales, zeros, loss] = group_quantize(
        weight.unsqueeze(0), upper.unsqueeze(0), order ? std::optional(order->unsqueeze(0)) : std::nullopt,
        bits, group_size, symmetric, rule, scale_dtype);
    return {codes.squeeze(0), scales.squeeze(0), zeros.squeeze(0), loss.squeeze(0)};
  }
  const int64_t layers = weight.size(0), m = weight.size(1), n = weight.size(2);
  TORCH_CHECK(layers <= kMaxLayers, "at most ", kMaxLayers, " layers in one call");
  const c10::cuda::CUDAGuard guard(weight.device());
  const at::NoTF32Guard precise;  // even if the caller allows TF32: errors feed back into codes
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const int64_t groups = (n + group_size - 1) / group_size;
  const auto options = weight.options();
  const at::Tensor natural = weight.contiguous(), factor = upper.contiguous();
  const at::Tensor columns =
      order ? order->to(at::kLong) : at::arange(n, options.dtype(at::kLong)).expand({layers, n});
  const auto along_rows = [&](const at::Tensor& index) { return index.unsqueeze(1).expand({layers, m, n}); };
  const at::Tensor visited = order ? natural.gather(2, along_rows(columns)) : natural;
  const at::Tensor group_of = columns.floor_divide(group_size).to(at::kInt).contiguous();
  at::Tensor codes = at::empty({layers, m, n}, options.dtype(at::kByte));
  at::Tensor errors = at::empty({layers, m, n}, options), scales = at::empty({layers, m, groups}, options);
  at::Tensor zeros = at::empty({layers, m, groups}, codes.options());
  at::Tensor loss = at::zeros({layers, m}, options.dtype(at::kDouble));
  if (natural.numel() == 0) return {codes, scales.to(scale_dtype), zeros, loss};

  tarq::cuda::Span span{};
  span.layers = layers;
  span.rows = m;
  span.columns = n;
  span.groups = groups;
  span.weight = visited.const_data_ptr<float>();
  span.upper = factor.const_data_ptr<float>();
  span.group_of = group_of.const_data_ptr<int>();
  span.lattice = tarq::lattice(bits, symmetric, rule, scale_dtype);
  span.codes = codes.mutable_data_ptr<uint8_t>();
  span.errors = errors.mutable_data_ptr<float>();
  span.scales = scales.mutable_data_ptr<float>();
  span.zeros = zeros.mutable_data_ptr<uint8_t>();
  span.loss = loss.mutable_data_ptr<double>();
  // Σ errors before column `begin` · L, for the columns from there up to `end`.
  const auto feedback = [&](int64_t begin, int64_t end) {
    return at::bmm(errors.narrow(2, 0, begin), factor.narrow(1, 0, begin).narrow(2, begin, end - begin));
  };
  const auto choose = [&](const at::Tensor& weights, int64_t group) {  // rows contiguous, maybe apart
    const tarq::cuda::GroupWeights from{weights.const_data_ptr<float>(), weights.stride(0), weights.stride(1),
                                        weights.size(2)};
    C10_CUDA_CHECK(tarq::cuda::choose_scales(span, from, group, stream));
  };

  if (order)  // static order: every scale from the original weights of its natural group
    for (int64_t group = 0; group < groups; ++group)
      choose(natural.narrow(2, group * group_size, std::min(group_size, n - group * group_size)), group);
  const int64_t step = order ? tarq::cuda::kSpan : group_size;
  for (int64_t start = 0; start < n; start += step) {
    const int64_t stop = std::min(start + step, n);
    const bool fits = stop - start <= tarq::cuda::kSpan;
    span.choose_scale = !order && fits;
    if (!order && !fits) {
      // A group wider than a span: its weights' conditional mean W + (E L_before) L_gg⁻¹, by a library solve.
      at::Tensor mean = visited.narrow(2, start, stop - start);
      if (start > 0) {
        const at::Tensor block = factor.narrow(1, start, stop - start).narrow(2, start, stop - start);
        mean = mean.add(
            at::linalg_solve_triangular(block, feedback(start, stop), /*upper=*/true, /*left=*/false));
      }
      choose(mean.stride(2) == 1 ? mean : mean.contiguous(), start / group_size);
    }
    for (span.begin = start; span.begin < stop; span.begin += tarq::cuda::kSpan) {
      span.width = std::min<int64_t>(tarq::cuda::kSpan, stop - span.begin);
      const at::Tensor sums = span.begin > 0 ? feedback(span.begin, span.begin + span.width) : at::Tensor();
      span.feedback = sums.defined() ? sums.const_data_ptr<float>() : nullptr;
      C10_CUDA_CHECK(tarq::cuda::quantize_span(span, stream));
    }
  }
  if (order) codes = codes.gather(2, along_rows(columns.argsort()));
  return {codes, scales.to(scale_dtype), zeros, loss};
}

}  // namespace

TORCH_LIBRARY_IMPL(tarq, CUDA, m) { m.impl("group_quantize", &group_quantize); }
