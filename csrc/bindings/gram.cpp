// gram on the CPU: `tarq::gram` and `tarq::gram_split`.
#include "cpu/gram/gram.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/parallel.h"

namespace {

using tarq::Float;

Float float_type(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return Float::f32;
    case at::kHalf:
      return Float::f16;
    case at::kBFloat16:
      return Float::bf16;
    default:
      TORCH_CHECK(false, "gram's kernels take float32, bfloat16 or float16 rows, not ", type);
  }
}

tarq::GramRows rows_of(const at::Tensor& t) {
  return {.data = t.const_data_ptr(),
          .type = float_type(t.scalar_type()),
          .stride = t.stride(0),
          .columns = t.size(1),
          .index = nullptr,
          .weight = nullptr};
}

/// Mirrors the lower triangle of out [n, n] to the upper one. Squares pass through a buffer, so that every
/// cache line is read and written once: rows a power of two apart lie in few sets of the cache.
void mirror(float* out, int64_t n) {
  constexpr int64_t kSquare = 16;
  tarq::for_each_dynamic((n + kSquare - 1) / kSquare, [&](int64_t strip) {
    const int64_t top = strip * kSquare, height = std::min(kSquare, n - top);
    for (int64_t left = 0; left <= top; left += kSquare) {
      const int64_t width = std::min(kSquare, n - left);
      float square[kSquare][kSquare];
      for (int64_t i = 0; i < height; ++i)
        for (int64_t j = 0; j < width; ++j) square[j][i] = out[(top + i) * n + left + j];
      for (int64_t j = 0; j < width; ++j) {
        float* const to = out + (left + j) * n + top;
        for (int64_t i = left == top ? j + 1 : 0; i < height; ++i) to[i] = square[j][i];
      }
    }
  });
}

/// Σ over `count` positions of y xᵀ; `symmetric`: y is x, and only the lower triangle is computed and
/// mirrored.
at::Tensor product(const tarq::GramRows& x, const tarq::GramRows& y, int64_t count, bool symmetric) {
  const int64_t n = x.columns, k = y.columns;
  if (count == 0) return at::zeros({1, 1}, at::kFloat).expand({k, n});  // one number: it is only read
  at::Tensor out = at::empty({k, n}, at::kFloat);
  if (n == 0 || k == 0) return out;
  const tarq::GramKernel& kernel = tarq::gram_kernel(y.type, x.type, y.weight, y.origin);
  const bool one_reading = symmetric && !y.weight, one_packing = one_reading && !kernel.two_layouts;
  const auto panels = [&](int64_t columns) { return (columns + kernel.panel - 1) / kernel.panel; };
  // Blocks of equal depth, give or take a few positions.
  const int64_t blocks = (count + kernel.depth - 1) / kernel.depth;
  const int64_t depth = ((count + blocks - 1) / blocks + 1) / 2 * 2;
  const auto buffer = [](int64_t bytes) { return at::empty({bytes + 64}, at::kByte); };
  const auto aligned = [](const at::Tensor& bytes) {
    return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(bytes.data_ptr()) + 63) / 64 * 64);
  };
  const at::Tensor right_bytes = buffer(panels(n) * kernel.right_bytes(depth));
  const at::Tensor left_bytes = one_packing ? right_bytes : buffer(panels(k) * kernel.left_bytes(depth));
  char *const right = aligned(right_bytes), *const left = aligned(left_bytes);
  const int64_t strips = (panels(n) + kernel.width - 1) / kernel.width,
                chunks = (k + kernel.rows_per_task - 1) / kernel.rows_per_task;

  for (int64_t first = 0; first < count; first += depth) {
    const int64_t positions = std::min(depth, count - first);
    const auto pack = [&](const tarq::GramRows& rows, char* to_left, char* to_right) {
      at::parallel_for(0, panels(rows.columns), 4, [&](int64_t begin, int64_t end) {
        kernel.pack(rows, first, positions, begin, end, to_left, to_right);
      });
    };
    pack(x, one_reading ? left : nullptr, right);
    if (!one_reading) pack(y, left, nullptr);
    const tarq::GramProduct block{.left = left,
                                  .right = right,
                                  .positions = positions,
                                  .out = out.mutable_data_ptr<float>(),
                                  .rows = k,
                                  .columns = n,
                                  .add = first > 0,
                                  .triangle = symmetric};
    tarq::for_each_dynamic(strips * chunks, [&](int64_t task) {
      const int64_t begin = task / strips * kernel.rows_per_task;
      kernel.multiply(block, task % strips, begin, std::min(begin + kernel.rows_per_task, k));
    });
  }
  if (symmetric) mirror(out.mutable_data_ptr<float>(), n);
  return out;
}

struct Operands {
  at::Tensor x, y, weight;  // columns contiguous; y is x where none was given; weight fp32 or undefined
  bool symmetric;

  Operands(const at::Tensor& rows, const std::optional<at::Tensor>& other,
           const std::optional<at::Tensor>& weights)
      : x(contiguous_columns(rows)), y(other ? contiguous_columns(*other) : x), symmetric(!other) {
    TORCH_CHECK(rows.dim() == 2 && y.dim() == 2 && y.size(0) == rows.size(0),
                "gram takes matrices with one row per position");
    TORCH_CHECK(y.scalar_type() == rows.scalar_type() || y.scalar_type() == at::kFloat,
                "gram takes matrices of one dtype, or y in float32");
    TORCH_CHECK(!weights || (weights->dim() == 1 && weights->size(0) == rows.size(0)),
                "gram takes one weight per row");
    if (weights) weight = weights->to(at::kFloat).contiguous();
  }

  static at::Tensor contiguous_columns(const at::Tensor& t) {
    return t.dim() == 2 && t.size(1) > 1 && t.stride(1) != 1 ? t.contiguous() : t;
  }
};

at::Tensor gram(const at::Tensor& x, const std::optional<at::Tensor>& y,
                const std::optional<at::Tensor>& weight) {
  const Operands given(x, y, weight);
  tarq::GramRows left = rows_of(given.y);
  if (given.weight.defined()) left.weight = given.weight.const_data_ptr<float>();
  return product(rows_of(given.x), left, x.size(0), given.symmetric);
}

std::tuple<at::Tensor, at::Tensor> gram_split(const at::Tensor& x, const std::optional<at::Tensor>& y,
                                              const std::optional<at::Tensor>& weight, const at::Tensor& tail,
                                              bool drift) {
  TORCH_CHECK(tail.scalar_type() == at::kBool && tail.dim() == 1 && tail.size(0) == x.size(0),
              "gram_split takes one bool per row");
  const Operands given(x, y, weight);
  TORCH_CHECK(!drift || (y && given.y.scalar_type() == x.scalar_type() && given.y.sizes() == x.sizes()),
              "the drift takes two matrices of one dtype and shape");
  const at::Tensor tags = tail.contiguous();
  const bool* in_tail = tags.const_data_ptr<bool>();
  const float* value = weight ? given.weight.const_data_ptr<float>() : nullptr;
  std::array<std::vector<int64_t>, 2> rows;
  std::array<bool, 2> weighted{};
  for (int64_t t = 0; t < x.size(0); ++t) {
    if (value && value[t] == 0.0f) continue;
    rows[in_tail[t]].push_back(t);
    weighted[in_tail[t]] |= value && value[t] != 1.0f;
  }
  const auto subset = [&](int s) {
    tarq::GramRows right = rows_of(given.x), left = rows_of(given.y);
    right.index = left.index = rows[s].data();
    if (weighted[s]) left.weight = value;
    if (drift) left.origin = right.data, left.origin_stride = right.stride;
    return product(right, left, int64_t(rows[s].size()), given.symmetric);
  };
  return {subset(0), subset(1)};
}

std::string gram_isa(at::ScalarType type, bool weighted) {
  return tarq::gram_kernel(float_type(type), float_type(type), weighted, false).isa;
}

}  // namespace

TORCH_LIBRARY_IMPL(tarq, CPU, m) {
  m.impl("gram", &gram);
  m.impl("gram_split", &gram_split);
}
// The instruction set that rows of a type get on the CPU.
TORCH_LIBRARY_FRAGMENT(tarq, m) { m.def("gram_isa(ScalarType dtype, bool weighted) -> str", gram_isa); }
