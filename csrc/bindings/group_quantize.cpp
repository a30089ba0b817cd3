// group_quantize on the CPU: `tarq::upper_cholesky`, `tarq::group_quantize` and `tarq::group_refine`.
#include "bindings/group_quantize.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "bindings/parallel.h"
#include "cpu/group_quantize/group_quantize.h"

namespace {

using tarq::for_each_dynamic;

// Pivot that is not positive, as 1 + its column; 0 when `a` now holds L in its upper triangle.
template <typename T>
int64_t factor_in_place(T* a, int64_t n) {
  const auto& kernels = tarq::group_quantize_kernels<T>();
  const int64_t block = kernels.factor_block, tile = kernels.row_tile;
  const auto options = at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value);
  const at::Tensor left = at::empty({n, block}, options), right = at::empty({n, block}, options);
  const at::Tensor diagonal = at::empty({block + 8, block}, options);
  for (int64_t begin = (n - 1) / block * block, end = n; end > 0; end = begin, begin -= block) {
    if (const int64_t failed = kernels.factor_diagonal(a, n, begin, end)) return failed;
    kernels.pack_diagonal(a, n, begin, end, diagonal.mutable_data_ptr<T>());
    for_each_dynamic(begin / tile, [&](int64_t t) {
      kernels.factor_rows(a, n, begin, end, diagonal.const_data_ptr<T>(), t, left.mutable_data_ptr<T>(),
                          right.mutable_data_ptr<T>());
    });
    // The last tile of columns is the longest: start with it.
    for_each_dynamic(begin / tile, [&](int64_t t) {
      kernels.factor_update(a, n, begin, end, left.const_data_ptr<T>(), right.const_data_ptr<T>(),
                            begin / tile - 1 - t);
    });
  }
  return 0;
}

std::tuple<at::Tensor, at::Tensor> upper_cholesky(const at::Tensor& hessian, const at::Tensor& diagonal) {
  TORCH_CHECK(hessian.dim() == 2 && hessian.size(0) == hessian.size(1), "hessian must be square");
  const int64_t n = hessian.size(0);
  TORCH_CHECK(diagonal.dim() == 1 && diagonal.size(0) == n && diagonal.scalar_type() == hessian.scalar_type(),
              "diagonal must be [n] in the Hessian's dtype");
  const at::Tensor from = hessian.contiguous(), pivots = diagonal.contiguous();
  at::Tensor upper = at::empty({n, n}, from.options());
  at::Tensor info = at::empty({}, from.options().dtype(at::kLong));
  AT_DISPATCH_FLOATING_TYPES(hessian.scalar_type(), "upper_cholesky", [&] {
    scalar_t* a = upper.mutable_data_ptr<scalar_t>();
    const scalar_t* h = from.const_data_ptr<scalar_t>();
    at::parallel_for(0, n, 64, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        std::copy(h + i * n + i, h + (i + 1) * n, a + i * n + i);
        a[i * n + i] = pivots.const_data_ptr<scalar_t>()[i];
      }
    });
    *info.mutable_data_ptr<int64_t>() = factor_in_place(a, n);
    at::parallel_for(0, n, 64, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) std::fill(a + i * n, a + i * n + i, scalar_t(0));
    });
  });
  return {upper, info};
}

using Quantized = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Quantized quantize_layer(const at::Tensor& weight, const at::Tensor& upper,
                         const std::optional<at::Tensor>& order, int64_t bits, int64_t group_size,
                         bool symmetric, c10::string_view rule, at::ScalarType scale_dtype) {
  const int64_t m = weight.size(0), n = weight.size(1);
  const int64_t groups = (n + group_size - 1) / group_size;
  const at::Tensor w = weight.contiguous(), factor = upper.contiguous();
  const auto bytes = w.options().dtype(at::kByte);
  at::Tensor codes = at::empty({m, n}, bytes), zeros = at::empty({m, groups}, bytes);
  at::Tensor scales = at::empty({m, groups}, w.options());
  at::Tensor loss = at::empty({m}, w.options().dtype(at::kDouble));

  at::Tensor visit;
  std::vector<int64_t> position;
  if (order) {
    visit = order->to(at::kLong).contiguous();
    position.assign(n, -1);
    for (int64_t k = 0; k < n; ++k) {
      const int64_t column = visit.const_data_ptr<int64_t>()[k];
      TORCH_CHECK(column >= 0 && column < n && position[column] < 0, "order must be a permutation");
      position[column] = k;
    }
  }

  AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "group_quantize", [&] {
    const auto& kernels = tarq::group_quantize_kernels<scalar_t>();
    at::Tensor packed = at::empty({kernels.packed_size(n)}, w.options());
    for_each_dynamic(kernels.pack_chunks(n), [&](int64_t chunk) {
      kernels.pack(factor.const_data_ptr<scalar_t>(), n, chunk, packed.mutable_data_ptr<scalar_t>());
    });
    tarq::Sweep<scalar_t> layer{};
    layer.rows = m;
    layer.columns = n;
    layer.group_size = group_size;
    layer.weight = w.const_data_ptr<scalar_t>();
    layer.packed = packed.const_data_ptr<scalar_t>();
    layer.order = order ? visit.const_data_ptr<int64_t>() : nullptr;
    layer.position = order ? position.data() : nullptr;
    layer.lattice = tarq::lattice(bits, symmetric, rule, scale_dtype);
    layer.codes = codes.mutable_data_ptr<uint8_t>();
    layer.scales = scales.mutable_data_ptr<scalar_t>();
    layer.zeros = zeros.mutable_data_ptr<uint8_t>();
    layer.loss = loss.mutable_data_ptr<double>();
    const int64_t tiles = (m + kernels.row_tile - 1) / kernels.row_tile;
    at::parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
      at::Tensor workspace = at::empty({kernels.workspace_size(n, group_size, end - begin)}, w.options());
      kernels.sweep(layer, begin, end, workspace.mutable_data_ptr<scalar_t>());
    });
  });
  return {codes, scales.to(scale_dtype), zeros, loss};
}

// Layer after layer: one already keeps all threads busy.
Quantized group_quantize(const at::Tensor& weight, const at::Tensor& upper,
                         const std::optional<at::Tensor>& order, int64_t bits, int64_t group_size,
                         bool symmetric, c10::string_view rule, at::ScalarType scale_dtype) {
  tarq::check_layer(weight, upper, order, bits, group_size);
  if (weight.dim() == 2)
    return quantize_layer(weight, upper, order, bits, group_size, symmetric, rule, scale_dtype);
  const int64_t layers = weight.size(0), m = weight.size(1), n = weight.size(2);
  const int64_t groups = (n + group_size - 1) / group_size;
  const at::Tensor codes = at::empty({layers, m, n}, weight.options().dtype(at::kByte));
  const at::Tensor scales = at::empty({layers, m, groups}, weight.options().dtype(scale_dtype));
  const at::Tensor zeros = at::empty({layers, m, groups}, codes.options());
  const at::Tensor loss = at::empty({layers, m}, weight.options().dtype(at::kDouble));
  for (int64_t i = 0; i < layers; ++i) {
    const std::optional<at::Tensor> visit = order ? std::optional(order->select(0, i)) : std::nullopt;
    const auto [c, s, z, l] = quantize_layer(weight.select(0, i), upper.select(0, i), visit, bits, group_size,
                                             symmetric, rule, scale_dtype);
    codes.select(0, i).copy_(c);
    scales.select(0, i).copy_(s);
    zeros.select(0, i).copy_(z);
    loss.select(0, i).copy_(l);
  }
  return {codes, scales, zeros, loss};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> group_refine(const at::Tensor& target,
                                                            const at::Tensor& hessian,
                                                            const at::Tensor& codes, const at::Tensor& scales,
                                                            const at::Tensor& zeros, const at::Tensor& loss,
                                                            int64_t bits, int64_t group_size, bool symmetric,
                                                            int64_t passes) {
  TORCH_CHECK(target.dim() == 2, "target must be [m, n]");
  tarq::check_layer(target, hessian, std::nullopt, bits, group_size);
  const int64_t m = target.size(0), n = target.size(1), groups = (n + group_size - 1) / group_size;
  TORCH_CHECK(codes.sizes() == target.sizes() && codes.scalar_type() == at::kByte,
              "codes must be uint8 [m, n]");
  TORCH_CHECK(scales.dim() == 2 && scales.size(0) == m && scales.size(1) == groups,
              "scales must be [m, groups]");
  TORCH_CHECK(zeros.sizes() == scales.sizes() && zeros.scalar_type() == at::kByte,
              "zeros must be uint8 [m, groups]");
  TORCH_CHECK(loss.dim() == 1 && loss.size(0) == m && loss.scalar_type() == at::kDouble,
              "loss must be float64 [m]");
  const at::Tensor v = target.contiguous(), h = hessian.contiguous(), shifts = zeros.contiguous();
  const at::Tensor refined = codes.clone(at::MemoryFormat::Contiguous);
  const at::Tensor fitted =
      scales.to(v.options(), /*non_blocking=*/false, /*copy=*/true, at::MemoryFormat::Contiguous);
  const at::Tensor left = loss.clone(at::MemoryFormat::Contiguous);

  AT_DISPATCH_FLOATING_TYPES(v.scalar_type(), "group_refine", [&] {
    const auto& kernels = tarq::group_quantize_kernels<scalar_t>();
    at::Tensor packed = at::empty({kernels.packed_square_size(n)}, v.options());
    for_each_dynamic(kernels.pack_chunks(n), [&](int64_t chunk) {
      kernels.pack_square(h.const_data_ptr<scalar_t>(), n, chunk, packed.mutable_data_ptr<scalar_t>());
    });
    tarq::Refinement<scalar_t> layer{};
    layer.rows = m;
    layer.columns = n;
    layer.group_size = group_size;
    layer.passes = passes;
    layer.target = v.const_data_ptr<scalar_t>();
    layer.packed = packed.const_data_ptr<scalar_t>();
    layer.lattice = tarq::lattice(bits, symmetric, "absmax", scales.scalar_type());
    layer.zeros = shifts.const_data_ptr<uint8_t>();
    layer.codes = refined.mutable_data_ptr<uint8_t>();
    layer.scales = fitted.mutable_data_ptr<scalar_t>();
    layer.loss = left.mutable_data_ptr<double>();
    const int64_t tiles = (m + kernels.row_tile - 1) / kernels.row_tile;
    at::parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
      at::Tensor workspace =
          at::empty({kernels.refine_workspace_size(n, group_size, end - begin)}, v.options());
      kernels.refine(layer, begin, end, workspace.mutable_data_ptr<scalar_t>());
    });
  });
  return {refined, fitted.to(scales.scalar_type()), left};
}

}  // namespace

TORCH_LIBRARY_IMPL(tarq, CPU, m) {
  m.impl("upper_cholesky", &upper_cholesky);
  m.impl("group_quantize", &group_quantize);
  m.impl("group_refine", &group_refine);
}
