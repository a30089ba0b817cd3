// For benchmarks: `tarq::read_bytes` and `tarq::multiply_add`, on all of torch's threads.
#include "cpu/ceilings.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <atomic>

namespace {

int64_t read_bytes(const at::Tensor& data) {
  constexpr int64_t kUnit = 1 << 16;
  TORCH_CHECK(data.is_contiguous() && reinterpret_cast<uintptr_t>(data.data_ptr()) % 64 == 0,
              "read_bytes takes a contiguous tensor that begins at a cache line");
  std::atomic<uint64_t> folded{0};
  at::parallel_for(0, int64_t(data.nbytes()) / kUnit, 1, [&](int64_t begin, int64_t end) {
    folded ^= tarq::read_bytes(static_cast<const char*>(data.const_data_ptr()) + begin * kUnit,
                               (end - begin) * kUnit);
  });
  return int64_t(folded.load());
}

double multiply_add(int64_t kind, int64_t iterations) {
  TORCH_CHECK(0 <= kind && kind <= 2, "kind is 0 (float32), 1 (bfloat16) or 2 (int8)");
  auto unit = static_cast<tarq::Multiply>(kind);
  if (unit == tarq::Multiply::bf16 && tarq::multiply_add(tarq::Multiply::bf16_tiles, 1) > 0)
    unit = tarq::Multiply::bf16_tiles;
  std::atomic<double> done{0};
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) done += tarq::multiply_add(unit, iterations);
  });
  return done;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(tarq, m) {
  m.def("read_bytes", read_bytes);
  m.def("multiply_add", multiply_add);
}
