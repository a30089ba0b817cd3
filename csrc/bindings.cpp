// The only CPU file that knows torch: checks tensors, hands raw pointers to the kernels in cpu/, and
// registers them as implementations of the operators whose schemas are declared in kernels/*/op.py.
#include <Python.h>

// `import tarq._C` loads this library, whose static initialisers register the operators; the module is empty.
extern "C" PyObject* PyInit__C() {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}

// ---- group_quantize
// ----------------------------------------------------------------------------------------

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <atomic>
#include <limits>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "cpu/group_quantize.h"

namespace {

// Call body(0) … body(count − 1) over torch's threads, each taking the next one when it is done with the
// last.
template <typename Body>
void for_each_dynamic(int64_t count, const Body& body) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(at::get_num_threads(), count), 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < count; i = next++) body(i);
  });
}

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

tarq::Lattice lattice(int64_t bits, bool symmetric, c10::string_view rule, at::ScalarType scale_dtype) {
  tarq::Lattice lattice{};
  lattice.max_code = (1 << bits) - 1;
  lattice.symmetric_zero = 1 << (bits - 1);
  lattice.symmetric = symmetric;
  TORCH_CHECK(rule == "absmax" || rule == "minmax" || rule == "mse", "unknown scale rule ", rule);
  lattice.rule = rule == "mse"      ? tarq::ScaleRule::kMse
                 : rule == "minmax" ? tarq::ScaleRule::kMinmax
                                    : tarq::ScaleRule::kAbsmax;
  if (scale_dtype == at::kHalf) {
    lattice.dropped_bits = 13;
    lattice.least_scale = std::numeric_limits<c10::Half>::min();
    lattice.largest_scale = std::numeric_limits<c10::Half>::max();
  } else if (scale_dtype == at::kBFloat16) {
    lattice.dropped_bits = 16;
    lattice.least_scale = std::numeric_limits<c10::BFloat16>::min();
    lattice.largest_scale = std::numeric_limits<c10::BFloat16>::max();
  } else {
    TORCH_CHECK(scale_dtype == at::kFloat, "scales are float16, bfloat16 or float32, not ", scale_dtype);
    lattice.least_scale = std::numeric_limits<float>::min();
    lattice.largest_scale = std::numeric_limits<float>::max();
  }
  return lattice;
}

using Quantized = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Quantized group_quantize(const at::Tensor& weight, const at::Tensor& upper,
                         const std::optional<at::Tensor>& order, int64_t bits, int64_t group_size,
                         bool symmetric, c10::string_view rule, at::ScalarType scale_dtype) {
  TORCH_CHECK(weight.dim() == 2, "weight must be [m, n]");
  const int64_t m = weight.size(0), n = weight.size(1);
  TORCH_CHECK(upper.dim() == 2 && upper.size(0) == n && upper.size(1) == n, "upper must be [n, n]");
  TORCH_CHECK(weight.scalar_type() == upper.scalar_type(), "weight and upper must share a dtype");
  TORCH_CHECK(bits >= 1 && bits <= 8 && group_size >= 1, "bits or group_size out of range");
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
    TORCH_CHECK(visit.dim() == 1 && visit.size(0) == n, "order must be [n]");
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
    layer.lattice = lattice(bits, symmetric, rule, scale_dtype);
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

}  // namespace

TORCH_LIBRARY_IMPL(tarq, CPU, m) {
  m.impl("upper_cholesky", &upper_cholesky);
  m.impl("group_quantize", &group_quantize);
}

// ---- end of group_quantize
// ---------------------------------------------------------------------------------

// ---- w4_linear
// ---------------------------------------------------------------------------------------------
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <torch/library.h>

#include "cpu/w4_linear.h"

namespace {

tarq::Float float_type(const at::Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return tarq::Float::f32;
    case at::kHalf:
      return tarq::Float::f16;
    case at::kBFloat16:
      return tarq::Float::bf16;
    default:
      TORCH_CHECK(false, "w4_linear: ", name, " must be float32, bfloat16 or float16, not ", t.scalar_type(),
                  "; convert it with .to(torch.float32)");
  }
}

void check_shape(const at::Tensor& t, const char* name, at::IntArrayRef shape) {
  TORCH_CHECK(t.is_cpu(), "w4_linear: ", name, " is on ", t.device(), " but x is on cpu; move one of them");
  TORCH_CHECK(t.sizes() == shape, "w4_linear: ", name, " must have shape ", shape, ", not ", t.sizes());
}

/// `run(begin, end, scratch)` over output features [from, to), on as many threads as the work is worth.
template <class Run>
void over_tiles(const tarq::W4Kernel& kernel, const tarq::W4Layer& layer, int64_t rows, int64_t from,
                int64_t to, Run run) {
  constexpr int64_t kWorkPerThread = 1 << 17;  // weights times rows below which a second thread costs more
  const int64_t tiles = (to - from + tarq::kTile - 1) / tarq::kTile;
  const int64_t grain = std::max<int64_t>(1, kWorkPerThread / (tarq::kTile * layer.in_features * rows));
  const int64_t scratch_bytes = (kernel.scratch_bytes(layer) + 63) / 64 * 64;
  at::Tensor scratch = at::empty({at::get_num_threads() * scratch_bytes}, at::kByte);
  char* base = static_cast<char*>(scratch.data_ptr());
  at::parallel_for(0, tiles, grain, [&](int64_t first, int64_t last) {
    run(from + first * tarq::kTile, std::min(from + last * tarq::kTile, to),
        base + at::get_thread_num() * scratch_bytes);
  });
}

/// Many rows: weights are made dense, a slice at a time, and multiplied by the library. The whole layer
/// at once would cost its memory and, above malloc's largest threshold, fresh pages at every call.
at::Tensor w4_linear_dense(const tarq::W4Kernel& kernel, const tarq::W4Layer& layer, const at::Tensor& x,
                           const std::optional<at::Tensor>& bias) {
  constexpr int64_t kDenseBytes = 24 << 20;
  // The GEMM below is this operator's own affair: no autograd graph, no cast of its operands.
  const at::AutoDispatchBelowADInplaceOrView below;
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  const at::ScalarType element = kernel.element == tarq::Float::bf16 ? at::kBFloat16 : at::kFloat;
  const int64_t padded = (layer.in_features + kernel.block - 1) / kernel.block * kernel.block;
  const int64_t row_bytes = padded * int64_t(at::elementSize(element));
  const int64_t fit = std::max<int64_t>(kDenseBytes / row_bytes / tarq::kTile, 1) * tarq::kTile;
  // Slices of equal height, give or take a tile.
  const int64_t slices = (layer.out_features + fit - 1) / fit;
  const int64_t step = (layer.out_features / slices + tarq::kTile) / tarq::kTile * tarq::kTile;

  const at::Tensor input = x.reshape({-1, layer.in_features}).to(element);
  const std::optional<at::Tensor> addend = bias ? std::optional(bias->to(element)) : std::nullopt;
  at::Tensor dense = at::empty({std::min(step, layer.out_features), padded}, element), y;
  for (int64_t from = 0; from < layer.out_features; from += step) {
    const int64_t count = std::min(step, layer.out_features - from);
    char* out = static_cast<char*>(dense.data_ptr()) - from * row_bytes;
    over_tiles(kernel, layer, 1, from, from + count, [&](int64_t begin, int64_t end, void* scratch) {
      kernel.decode(layer, out, padded, begin, end, scratch);
    });
    const at::Tensor weight = dense.narrow(0, 0, count).narrow(1, 0, layer.in_features);
    at::Tensor part =
        at::linear(input, weight, addend ? std::optional(addend->narrow(0, from, count)) : addend);
    if (count == layer.out_features) {
      y = part.to(x.scalar_type());
    } else {
      if (from == 0) y = at::empty({input.size(0), layer.out_features}, x.scalar_type());
      y.narrow(1, from, count).copy_(part);
    }
  }
  at::DimVector shape(x.sizes());
  shape.back() = layer.out_features;
  return y.view(shape);
}

at::Tensor w4_linear_cpu(const at::Tensor& x, const at::Tensor& weight_packed, const at::Tensor& weight_scale,
                         const std::optional<at::Tensor>& weight_zero_point,
                         const std::optional<at::Tensor>& bias, int64_t in_features, int64_t group_size) {
  TORCH_CHECK(in_features > 0, "w4_linear: in_features must be positive, not ", in_features);
  TORCH_CHECK(group_size > 0, "w4_linear: group_size must be positive, not ", group_size);
  TORCH_CHECK(x.dim() > 0 && x.size(-1) == in_features,
              "w4_linear: the last dimension of x must be in_features = ", in_features, ", but x has shape ",
              x.sizes());
  TORCH_CHECK(weight_packed.scalar_type() == at::kInt, "w4_linear: weight_packed must be int32, not ",
              weight_packed.scalar_type(), "; pack codes with tarq.kernels.w4_linear.pack");
  TORCH_CHECK(weight_packed.dim() == 2, "w4_linear: weight_packed must have two dimensions, not shape ",
              weight_packed.sizes());
  const int64_t out_features = weight_packed.size(0), groups = (in_features + group_size - 1) / group_size;
  check_shape(weight_packed, "weight_packed", {out_features, (in_features + 7) / 8});
  check_shape(weight_scale, "weight_scale", {out_features, groups});

  const tarq::Float x_type = float_type(x, "x");
  // Already contiguous in every loaded layer, so these are no copies.
  const at::Tensor codes = weight_packed.contiguous(), scales = weight_scale.contiguous();
  tarq::W4Layer layer{.out_features = out_features,
                      .in_features = in_features,
                      .group_size = group_size,
                      .groups = groups,
                      .codes = reinterpret_cast<const uint32_t*>(codes.const_data_ptr<int32_t>()),
                      .scales = scales.const_data_ptr(),
                      .scale_type = float_type(scales, "weight_scale"),
                      .zeros = nullptr,
                      .bias = nullptr,
                      .bias_type = tarq::Float::f32};
  at::Tensor zeros, offset;
  if (weight_zero_point) {
    TORCH_CHECK(weight_zero_point->scalar_type() == at::kInt,
                "w4_linear: weight_zero_point must be int32, not ", weight_zero_point->scalar_type(),
                "; pack zero points with tarq.kernels.w4_linear.pack_zeros");
    check_shape(*weight_zero_point, "weight_zero_point", {(out_features + 7) / 8, groups});
    zeros = weight_zero_point->contiguous();
    layer.zeros = reinterpret_cast<const uint32_t*>(zeros.const_data_ptr<int32_t>());
  }
  if (bias) {
    check_shape(*bias, "bias", {out_features});
    offset = bias->contiguous();
    layer.bias = offset.const_data_ptr();
    layer.bias_type = float_type(offset, "bias");
  }

  at::DimVector shape(x.sizes());
  shape.back() = out_features;
  const int64_t rows = x.numel() / in_features;
  if (rows == 0 || out_features == 0) return at::empty(shape, x.scalar_type());

  const tarq::W4Kernel* kernel = tarq::w4_select(x_type);
  TORCH_CHECK(kernel,
              "w4_linear: TARQ_CPU_ISA names an instruction set this machine does not have; "
              "torch.ops.tarq.w4_linear_isas() lists those it has");
  const bool bf16 = kernel->element == tarq::Float::bf16;
  const at::ScalarType element = bf16 ? at::kBFloat16 : at::kFloat;
  const int64_t padded = (in_features + kernel->block - 1) / kernel->block * kernel->block;
  if (rows > kernel->tiled_rows)
    return w4_linear_dense(*kernel, layer, x, bias ? std::optional(offset) : std::nullopt);

  // One cache line more a row: rows a power of two apart would share the few lines of one cache set.
  const int64_t stride = padded + (bf16 ? 32 : 16);
  const at::Tensor input = x.contiguous();
  at::Tensor packed = at::empty({rows, stride}, element);
  const char* from = static_cast<const char*>(input.const_data_ptr());
  char* to = static_cast<char*>(packed.data_ptr());
  constexpr int64_t kPackPerThread = 1 << 17;  // inputs below which a second thread costs more
  at::parallel_for(0, rows, std::max<int64_t>(1, kPackPerThread / in_features),
                   [&](int64_t begin, int64_t end) {
                     kernel->pack_input(from + begin * in_features * x.element_size(), x_type, end - begin,
                                        in_features, to + begin * stride * packed.element_size(), stride);
                   });
  at::Tensor y = at::empty(shape, x.scalar_type());
  const tarq::W4Product product{
      .x = packed.const_data_ptr(), .rows = rows, .stride = stride, .y = y.data_ptr(), .y_type = x_type};
  const auto run = rows <= kernel->fused_rows ? kernel->fused : kernel->tiled;
  over_tiles(*kernel, layer, rows, 0, out_features,
             [&](int64_t begin, int64_t end, void* scratch) { run(layer, product, begin, end, scratch); });
  return y;
}

std::vector<std::string> w4_linear_isas() {
  int count;
  const tarq::W4Kernel* const* kernels = tarq::w4_kernels(&count);
  std::vector<std::string> names;
  for (int k = 0; k < count; ++k) names.emplace_back(kernels[k]->isa);
  return names;
}

}  // namespace

TORCH_LIBRARY_IMPL(tarq, CPU, m) { m.impl("w4_linear", w4_linear_cpu); }
// For tests and benchmarks: the instruction sets TARQ_CPU_ISA can name on this machine, best first.
TORCH_LIBRARY_FRAGMENT(tarq, m) { m.def("w4_linear_isas", w4_linear_isas); }
