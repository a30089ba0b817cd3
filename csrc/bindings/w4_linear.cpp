// w4_linear on the CPU: `tarq::w4_linear` and `tarq::w4_linear_int8`.
#include "cpu/w4_linear.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <torch/library.h>

#include "cpu/isa.h"
#include "cpu/w4_linear_int8.h"

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

/// Many rows: weights are made dense, a slice at a time, and multiplied by the library with the packed
/// inputs. The whole layer at once would cost its memory and, above malloc's largest threshold, fresh pages
/// at every call.
at::Tensor w4_linear_dense(const tarq::W4Kernel& kernel, const tarq::W4Layer& layer, const at::Tensor& packed,
                           const std::optional<at::Tensor>& bias, at::ScalarType y_type) {
  constexpr int64_t kDenseBytes = 24 << 20;
  // The GEMM below is this operator's own affair: no autograd graph, no cast of its operands.
  const at::AutoDispatchBelowADInplaceOrView below;
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  const at::ScalarType element = packed.scalar_type();
  const int64_t padded = (layer.in_features + kernel.block - 1) / kernel.block * kernel.block;
  const int64_t row_bytes = padded * int64_t(at::elementSize(element));
  const int64_t fit = std::max<int64_t>(kDenseBytes / row_bytes / tarq::kTile, 1) * tarq::kTile;
  // Slices of equal height, give or take a tile.
  const int64_t slices = (layer.out_features + fit - 1) / fit;
  const int64_t step = (layer.out_features / slices + tarq::kTile) / tarq::kTile * tarq::kTile;

  const at::Tensor input = packed.narrow(1, 0, padded);
  const std::optional<at::Tensor> addend = bias ? std::optional(bias->to(element)) : std::nullopt;
  at::Tensor dense = at::empty({std::min(step, layer.out_features), padded}, element), y;
  for (int64_t from = 0; from < layer.out_features; from += step) {
    const int64_t count = std::min(step, layer.out_features - from);
    char* const out = static_cast<char*>(dense.data_ptr());
    over_tiles(kernel, layer, 1, from, from + count, [&](int64_t begin, int64_t end, void* scratch) {
      kernel.decode(layer, out + (begin - from) * row_bytes, begin, end, scratch);
    });
    at::Tensor part = at::linear(input, dense.narrow(0, 0, count),
                                 addend ? std::optional(addend->narrow(0, from, count)) : addend);
    if (count == layer.out_features) return part.to(y_type);
    if (from == 0) y = at::empty({input.size(0), layer.out_features}, y_type);
    y.narrow(1, from, count).copy_(part);
  }
  return y;
}

/// A layer's tensors, checked against x and held while the kernels read them.
struct Operands {
  at::Tensor codes, scales, zeros, bias;
  tarq::W4Layer layer;
  tarq::Float x_type;

  Operands(const at::Tensor& x, const at::Tensor& weight_packed, const at::Tensor& weight_scale,
           const std::optional<at::Tensor>& weight_zero_point, const std::optional<at::Tensor>& offset,
           int64_t in_features, int64_t group_size) {
    TORCH_CHECK(in_features > 0, "w4_linear: in_features must be positive, not ", in_features);
    TORCH_CHECK(group_size > 0, "w4_linear: group_size must be positive, not ", group_size);
    TORCH_CHECK(x.dim() > 0 && x.size(-1) == in_features,
                "w4_linear: the last dimension of x must be in_features = ", in_features,
                ", but x has shape ", x.sizes());
    TORCH_CHECK(weight_packed.scalar_type() == at::kInt, "w4_linear: weight_packed must be int32, not ",
                weight_packed.scalar_type(), "; pack codes with tarq.kernels.w4_linear.pack");
    TORCH_CHECK(weight_packed.dim() == 2, "w4_linear: weight_packed must have two dimensions, not shape ",
                weight_packed.sizes());
    const int64_t out_features = weight_packed.size(0), groups = (in_features + group_size - 1) / group_size;
    check_shape(weight_packed, "weight_packed", {out_features, (in_features + 7) / 8});
    check_shape(weight_scale, "weight_scale", {out_features, groups});

    x_type = float_type(x, "x");
    // Already contiguous in every loaded layer, so these are no copies.
    codes = weight_packed.contiguous();
    scales = weight_scale.contiguous();
    layer = {.out_features = out_features,
             .in_features = in_features,
             .group_size = group_size,
             .groups = groups,
             .codes = reinterpret_cast<const uint32_t*>(codes.const_data_ptr<int32_t>()),
             .scales = scales.const_data_ptr(),
             .scale_type = float_type(scales, "weight_scale"),
             .zeros = nullptr,
             .bias = nullptr,
             .bias_type = tarq::Float::f32};
    if (weight_zero_point) {
      TORCH_CHECK(weight_zero_point->scalar_type() == at::kInt,
                  "w4_linear: weight_zero_point must be int32, not ", weight_zero_point->scalar_type(),
                  "; pack zero points with tarq.kernels.w4_linear.pack_zeros");
      check_shape(*weight_zero_point, "weight_zero_point", {(out_features + 7) / 8, groups});
      zeros = weight_zero_point->contiguous();
      layer.zeros = reinterpret_cast<const uint32_t*>(zeros.const_data_ptr<int32_t>());
    }
    if (offset) {
      check_shape(*offset, "bias", {out_features});
      bias = offset->contiguous();
      layer.bias = bias.const_data_ptr();
      layer.bias_type = float_type(bias, "bias");
    }
  }
};

/// Rows of activations as a kernel reads them.
struct Packed {
  at::Tensor rows, sums;
  tarq::W4Product product;  // without the result's place

  /// From row `first` of x [.., in_features] on.
  Packed(const tarq::W4Kernel& kernel, const tarq::W4Layer& layer, const at::Tensor& x, tarq::Float x_type,
         int64_t first, int64_t count)
      : rows(at::empty({count, kernel.row_stride(layer.in_features)},
                       kernel.element == tarq::Float::bf16 ? at::kBFloat16 : at::kFloat)) {
    const int64_t k = layer.in_features, stride = rows.size(1), row_bytes = stride * rows.element_size();
    const int64_t sum_stride = (k + kernel.block - 1) / kernel.block * (kernel.block / 8);
    float* sums_to = nullptr;
    if (kernel.wants_sums && count <= kernel.fused_rows) {
      sums = at::empty({count, sum_stride}, at::kFloat);
      sums_to = sums.data_ptr<float>();
    }
    const char* from = static_cast<const char*>(x.const_data_ptr()) + first * k * x.element_size();
    char* to = static_cast<char*>(rows.data_ptr());
    constexpr int64_t kInputsPerThread = 1 << 17;  // below which a second thread costs more
    at::parallel_for(0, count, std::max<int64_t>(1, kInputsPerThread / k), [&](int64_t begin, int64_t end) {
      kernel.pack_input(from + begin * k * x.element_size(), x_type, end - begin, k, to + begin * row_bytes,
                        stride, sums_to ? sums_to + begin * sum_stride : nullptr);
    });
    product = {.x = to,
               .rows = count,
               .stride = stride,
               .sums = sums_to,
               .sum_stride = sum_stride,
               .y = nullptr,
               .y_type = x_type};
  }
};

at::Tensor w4_linear_cpu(const at::Tensor& x, const at::Tensor& weight_packed, const at::Tensor& weight_scale,
                         const std::optional<at::Tensor>& weight_zero_point,
                         const std::optional<at::Tensor>& bias, int64_t in_features, int64_t group_size) {
  const Operands given(x, weight_packed, weight_scale, weight_zero_point, bias, in_features, group_size);
  const tarq::W4Layer& layer = given.layer;
  const int64_t out_features = layer.out_features;
  at::DimVector shape(x.sizes());
  shape.back() = out_features;
  const int64_t rows = x.numel() / in_features;
  if (rows == 0 || out_features == 0) return at::empty(shape, x.scalar_type());

  const tarq::W4Kernel& kernel = tarq::w4_kernel(given.x_type);
  const at::Tensor input = x.contiguous();
  if (rows > kernel.tiled_rows) {
    const Packed packed(kernel, layer, input, given.x_type, 0, rows);
    return w4_linear_dense(kernel, layer, packed.rows, bias, x.scalar_type()).view(shape);
  }
  at::Tensor y = at::empty(shape, x.scalar_type());
  // A copy of many rows at once would be fresh pages at every call (see w4_linear_dense).
  constexpr int64_t kPackedBytes = 8 << 20;
  const int64_t fit = std::max<int64_t>(kPackedBytes / (kernel.row_stride(in_features) * 4), 1);
  const int64_t pieces = (rows + fit - 1) / fit;
  const auto run = rows <= kernel.fused_rows ? kernel.fused : kernel.tiled;
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t first = rows * piece / pieces, count = rows * (piece + 1) / pieces - first;
    Packed packed(kernel, layer, input, given.x_type, first, count);
    packed.product.y = static_cast<char*>(y.data_ptr()) + first * out_features * y.element_size();
    over_tiles(kernel, layer, count, 0, out_features, [&](int64_t begin, int64_t end, void* scratch) {
      run(layer, packed.product, begin, end, scratch);
    });
  }
  return y;
}

at::Tensor w4_linear_int8_cpu(const at::Tensor& x, const at::Tensor& weight_packed,
                              const at::Tensor& weight_scale,
                              const std::optional<at::Tensor>& weight_zero_point,
                              const std::optional<at::Tensor>& bias, int64_t in_features,
                              int64_t group_size) {
  const Operands given(x, weight_packed, weight_scale, weight_zero_point, bias, in_features, group_size);
  const tarq::W4Layer& layer = given.layer;
  TORCH_CHECK(layer.groups == 1 || group_size == 32 || group_size == 64 || group_size % 128 == 0,
              "w4_linear_int8: group_size must be 32, 64, a multiple of 128 or all of in_features, not ",
              group_size, "; use w4_linear");
  at::DimVector shape(x.sizes());
  shape.back() = layer.out_features;
  const int64_t rows = x.numel() / in_features;
  at::Tensor y = at::empty(shape, x.scalar_type());
  if (rows == 0 || layer.out_features == 0) return y;

  const tarq::W4Int8Kernel& kernel = tarq::w4_int8_kernel();
  const int64_t padded = (in_features + kernel.block - 1) / kernel.block * kernel.block;
  const int64_t groups = layer.groups == 1 ? 1 : (padded + group_size - 1) / group_size;
  const at::Tensor input = x.contiguous();
  const auto lines = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
  const int64_t code_bytes = lines(rows * padded), sum_bytes = lines(rows * padded / 8 * 4);
  const int64_t scale_bytes = lines(rows * groups * 4), scratch_bytes = lines(kernel.scratch_bytes(layer));
  at::Tensor buffer = at::empty(
      {code_bytes + sum_bytes + scale_bytes + at::get_num_threads() * scratch_bytes + 64}, at::kByte);
  char* const base = reinterpret_cast<char*>(lines(int64_t(reinterpret_cast<intptr_t>(buffer.data_ptr()))));
  const tarq::Int8Input rounded{.codes = reinterpret_cast<int8_t*>(base),
                                .sums = reinterpret_cast<int32_t*>(base + code_bytes),
                                .scales = reinterpret_cast<float*>(base + code_bytes + sum_bytes),
                                .rows = rows,
                                .padded = padded,
                                .groups = groups};
  const auto own_scratch = [&] {
    return base + code_bytes + sum_bytes + scale_bytes + at::get_thread_num() * scratch_bytes;
  };
  constexpr int64_t kInputsPerThread = 1 << 16;  // below which a second thread costs more
  at::parallel_for(
      0, rows, std::max<int64_t>(1, kInputsPerThread / in_features), [&](int64_t begin, int64_t end) {
        kernel.quantize(layer, input.const_data_ptr(), given.x_type, rounded, begin, end, own_scratch());
      });
  constexpr int64_t kWorkPerThread = 1 << 18;  // weights times rows, likewise
  const int64_t tiles = (layer.out_features + tarq::kTile - 1) / tarq::kTile;
  const int64_t grain = std::max<int64_t>(1, kWorkPerThread / (tarq::kTile * in_features * rows));
  at::parallel_for(0, tiles, grain, [&](int64_t first, int64_t last) {
    kernel.multiply(layer, rounded, y.data_ptr(), given.x_type, first * tarq::kTile,
                    std::min(last * tarq::kTile, layer.out_features), own_scratch());
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(tarq, CPU, m) {
  m.impl("w4_linear", w4_linear_cpu);
  m.impl("w4_linear_int8", w4_linear_int8_cpu);
}
// For tests and benchmarks: the instruction sets TARQ_CPU_ISA can name on this machine, best first.
TORCH_LIBRARY_FRAGMENT(tarq, m) { m.def("cpu_isas", tarq::isa_names); }
