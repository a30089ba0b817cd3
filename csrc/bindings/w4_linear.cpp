// w4_linear on the CPU: `tarq::w4_linear` and `tarq::w4_linear_int8`.
#include "cpu/w4_linear/w4_linear.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <optional>

#include "cpu/isa.h"
#include "cpu/w4_linear/int8.h"

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

/// `run(begin, end, scratch)` over output features [from, to), on as many threads as the work is worth.
template <class Run>
void over_tiles(const tarq::W4Layer& layer, int64_t rows, int64_t scratch_bytes, int64_t from, int64_t to,
                Run run) {
  constexpr int64_t kWorkPerThread = 1 << 17;  // weights times rows below which a second thread costs more
  const int64_t tiles = (to - from + tarq::kTile - 1) / tarq::kTile;
  const int64_t grain = std::max<int64_t>(1, kWorkPerThread / (tarq::kTile * layer.in_features * rows));
  scratch_bytes = (scratch_bytes + 63) / 64 * 64;
  at::Tensor scratch = at::empty({at::get_num_threads() * scratch_bytes}, at::kByte);
  char* base = static_cast<char*>(scratch.data_ptr());
  at::parallel_for(0, tiles, grain, [&](int64_t first, int64_t last) {
    run(from + first * tarq::kTile, std::min(from + last * tarq::kTile, to),
        base + at::get_thread_num() * scratch_bytes);
  });
}

/// y [rows, out_features] from x [rows, in_features], both contiguous: few rows.
void multiply_few(const tarq::W4FewRows& kernel, const tarq::W4Layer& layer, const at::Tensor& x,
                  tarq::Float type, int64_t rows, void* y) {
  const int64_t k = layer.in_features, stride = kernel.stride(k);
  const int64_t sum_stride = (k + kernel.block - 1) / kernel.block * (kernel.block / 8);
  const at::Tensor packed =
      at::empty({rows, stride}, kernel.element == tarq::Float::bf16 ? at::kBFloat16 : at::kFloat);
  const at::Tensor sums = at::empty({kernel.wants_sums ? rows * sum_stride : 0}, at::kFloat);
  float* const sums_to = kernel.wants_sums ? sums.mutable_data_ptr<float>() : nullptr;
  kernel.pack(x.const_data_ptr(), type, rows, k, packed.mutable_data_ptr(), stride, sums_to);
  const tarq::W4Product product{.x = packed.const_data_ptr(),
                                .rows = rows,
                                .stride = stride,
                                .sums = sums_to,
                                .sum_stride = sum_stride,
                                .y = y,
                                .y_type = type};
  over_tiles(layer, rows, kernel.scratch_bytes(layer), 0, layer.out_features,
             [&](int64_t begin, int64_t end, void* scratch) {
               kernel.multiply(layer, product, begin, end, scratch);
             });
}

/// The same for any number of rows.
void multiply_many(const tarq::W4ManyRows& kernel, const tarq::W4Layer& layer, const at::Tensor& x,
                   tarq::Float type, int64_t rows, char* y) {
  // Copying many rows at once would allocate fresh pages at every call, as malloc does above its mmap
  // threshold.
  constexpr int64_t kPackedBytes = 8 << 20, kInputsPerThread = 1 << 16;
  const int64_t k = layer.in_features, fit = std::max<int64_t>(kPackedBytes / (k * 4), 1);
  const int64_t pieces = (rows + fit - 1) / fit;
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t first = rows * piece / pieces, count = rows * (piece + 1) / pieces - first;
    const char* const from = static_cast<const char*>(x.const_data_ptr()) + first * k * x.element_size();
    const at::Tensor packed = at::empty({kernel.input_bytes(count, k)}, at::kByte);
    const int64_t panels = kernel.panels(count);
    at::parallel_for(0, panels, std::max<int64_t>(1, kInputsPerThread * panels / (k * count)),
                     [&](int64_t begin, int64_t end) {
                       kernel.pack(from, type, count, k, begin, end, packed.mutable_data_ptr());
                     });
    const tarq::W4Product product{.x = packed.const_data_ptr(),
                                  .rows = count,
                                  .stride = 0,
                                  .sums = nullptr,
                                  .sum_stride = 0,
                                  .y = y + first * layer.out_features * x.element_size(),
                                  .y_type = type};
    over_tiles(layer, count, kernel.scratch_bytes(layer), 0, layer.out_features,
               [&](int64_t begin, int64_t end, void* scratch) {
                 kernel.multiply(layer, product, begin, end, scratch);
               });
  }
}

/// The transpose of weights [from, from + count) in bf16, to the first columns of dense [in_features, ..].
void decode(const tarq::W4ManyRows& kernel, const tarq::W4Layer& layer, int64_t from, int64_t count,
            const at::Tensor& dense) {
  uint16_t* const out = static_cast<uint16_t*>(dense.mutable_data_ptr());
  over_tiles(layer, 1, kernel.scratch_bytes(layer), from, from + count,
             [&](int64_t begin, int64_t end, void* scratch) {
               kernel.decode(layer, out - from, dense.stride(0), begin, end, scratch);
             });
}

/// Many rows of bf16 where the library's product is fast: weights are expanded slice by slice. Expanding the
/// whole layer at once would cost its memory and fresh pages at every call.
at::Tensor multiply_dense(const tarq::W4ManyRows& kernel, const tarq::W4Layer& layer, const at::Tensor& x,
                          const std::optional<at::Tensor>& bias) {
  constexpr int64_t kDenseBytes = 24 << 20;
  // The product below is internal to this operator: no autograd graph, no cast of its operands.
  const at::AutoDispatchBelowADInplaceOrView below;
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  const int64_t fit = std::max<int64_t>(kDenseBytes / (layer.in_features * 2) / 64, 1) * 64;
  const int64_t slices = (layer.out_features + fit - 1) / fit;
  const int64_t step = std::min((layer.out_features / slices + 64) / 64 * 64, layer.out_features);
  const std::optional<at::Tensor> addend = bias ? std::optional(bias->to(at::kBFloat16)) : std::nullopt;
  const at::Tensor dense = at::empty({layer.in_features, step}, at::kBFloat16);
  at::Tensor y;
  for (int64_t from = 0; from < layer.out_features; from += step) {
    const int64_t count = std::min(step, layer.out_features - from);
    decode(kernel, layer, from, count, dense);
    const at::Tensor part = at::linear(x, dense.narrow(1, 0, count).t(),
                                       addend ? std::optional(addend->narrow(0, from, count)) : addend);
    if (count == layer.out_features) return part;
    if (from == 0) y = at::empty({x.size(0), layer.out_features}, at::kBFloat16);
    y.narrow(1, from, count).copy_(part);
  }
  return y;
}

/// Seconds that a call takes.
template <class Call>
double seconds(Call call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
  return time.count();
}

/// A number of threads that is torch's own again when this ends, by an error too.
class ThreadCount {
 public:
  explicit ThreadCount(int count) : before_(at::get_num_threads()) { at::set_num_threads(count); }
  ~ThreadCount() { at::set_num_threads(before_); }
  ThreadCount(const ThreadCount&) = delete;
  ThreadCount& operator=(const ThreadCount&) = delete;

 private:
  int before_;
};

/// Number of bf16 rows from which a layer may be expanded: decoding it costs as much as about 40 rows.
constexpr int64_t kDenseRows = 128;

/// Speed of `multiply_dense` relative to `multiply_many` at its fewest rows: on a small layer, alternating,
/// the best of each, in a few milliseconds.
double dense_gain() {
  constexpr int64_t size = 512;
  const tarq::W4ManyRows& kernel = tarq::w4_many_rows();
  const at::Tensor codes = at::zeros({size, size / 8}, at::kInt), scales = at::ones({size, 4}, at::kFloat);
  const at::Tensor x = at::ones({kDenseRows, size}, at::kBFloat16), y = at::empty_like(x);
  const tarq::W4Layer layer{.out_features = size,
                            .in_features = size,
                            .group_size = size / 4,
                            .groups = 4,
                            .codes = reinterpret_cast<const uint32_t*>(codes.const_data_ptr<int32_t>()),
                            .scales = scales.const_data_ptr(),
                            .scale_type = tarq::Float::f32,
                            .zeros = nullptr,
                            .bias = nullptr,
                            .bias_type = tarq::Float::f32};
  constexpr double kNever = std::numeric_limits<double>::infinity();
  double own = kNever, dense = kNever;
  const ThreadCount one(1);  // threads that wait for each other beside busy processes would decide by chance
  for (int turn = 0; turn < 16; ++turn) {  // the first warms up
    own = std::min(own, seconds([&] {
                     multiply_many(kernel, layer, x, tarq::Float::bf16, kDenseRows,
                                   static_cast<char*>(y.data_ptr()));
                   }));
    dense = std::min(dense, seconds([&] { multiply_dense(kernel, layer, x, std::nullopt); }));
  }
  return own / dense;
}

/// Whether a product of so many bf16 rows should be the library's, on expanded weights. With matrix units
/// that is twice as fast from `kDenseRows` on and ten times for many rows; elsewhere it is slower. It is
/// measured once; the threshold is far from both cases, so that processes on one machine choose alike.
/// TARQ_CPU_ISA decides without measuring: avx512_bf16 uses it, every other name does not.
bool dense_chosen(int64_t rows) {
  constexpr double kBound = 1.4;
  if (rows < kDenseRows || !tarq::isa_allowed(tarq::Isa::avx512_bf16)) return false;
  if (tarq::isa_named()) return true;
  static const bool gains = dense_gain() > kBound;
  return gains;
}

at::Tensor w4_linear_cpu(const at::Tensor& x, const at::Tensor& weight_packed, const at::Tensor& weight_scale,
                         const std::optional<at::Tensor>& weight_zero_point,
                         const std::optional<at::Tensor>& bias, int64_t in_features, int64_t group_size) {
  const Operands given(x, weight_packed, weight_scale, weight_zero_point, bias, in_features, group_size);
  const tarq::W4Layer& layer = given.layer;
  at::DimVector shape(x.sizes());
  shape.back() = layer.out_features;
  const int64_t rows = x.numel() / in_features;
  if (rows == 0 || layer.out_features == 0) return at::empty(shape, x.scalar_type());
  const at::Tensor input = x.contiguous();
  const tarq::W4FewRows* const few = tarq::w4_few_rows(layer, given.x_type, rows);
  const tarq::W4ManyRows& many = tarq::w4_many_rows();
  if (!few && given.x_type == tarq::Float::bf16 && dense_chosen(rows))
    return multiply_dense(many, layer, input.view({rows, in_features}), bias).view(shape);
  at::Tensor y = at::empty(shape, x.scalar_type());
  if (few)
    multiply_few(*few, layer, input, given.x_type, rows, y.data_ptr());
  else
    multiply_many(many, layer, input, given.x_type, rows, static_cast<char*>(y.data_ptr()));
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

  const tarq::W4Int8Kernel& kernel = tarq::w4_int8_kernel(layer, rows);
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
// The instruction sets TARQ_CPU_ISA can name on this machine, best first, and what the system refuses.
TORCH_LIBRARY_FRAGMENT(tarq, m) {
  m.def("cpu_isas", tarq::isa_names);
  m.def("cpu_isa_refusal", tarq::isa_refusal);
}
