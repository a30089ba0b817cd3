// Portable kernel, and the choice among those this machine can run.
#include "w4_linear.h"

#include <cstdlib>
#include <cstring>

#include "w4_linear_body.h"

namespace tarq {
namespace {

struct Scalar {
  using Element = float;
  using Words = uint32_t;
  using Vector = float;
  using Sum = float;
  static constexpr int lanes = 1, steps = 8, width = 1, micro_rows = 2;

  static int source(int e) { return e; }
  static Words load_words(const uint32_t* from) { return *from; }
  static Words load_words_part(const uint32_t*, int) { return 0; }
  static Words shift(Words words) { return words >> 4; }
  template <int parts>
  static Vector lookup(const float* table, Words words) {
    return table[words & 15];
  }
  static Vector load(const float* from) { return *from; }
  static void store(float* to, Vector v) { *to = v; }
  static Sum zero() { return 0.0f; }
  static Sum dot(Sum sum, Vector w, Vector x) { return sum + w * x; }
  static void reduce(const Sum* sums, float* out) { std::memcpy(out, sums, sizeof(float) * kTile); }
  static void fill_table(float* table, const void* scales, Float type, int64_t i, float zero) {
    const float scale = read(scales, type, i);
    for (int code = 0; code < 16; ++code) table[code] = round_to((float(code) - zero) * scale, type);
  }
  static void pack_block(const void* x, Float type, int64_t first, float* to) {
    for (int k = 0; k < 8; ++k) to[k] = read(x, type, first + k);
  }
};

}  // namespace

const W4Kernel kW4Scalar = make_kernel<Scalar>("scalar", Float::f32, 4, 16);

const W4Kernel* const* w4_kernels(int* count) {
  static const W4Kernel* found[4];
  static const int n = [] {
    int k = 0;
#if defined(__x86_64__)
    const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx512 && __builtin_cpu_supports("avx512bf16")) found[k++] = &kW4Avx512Bf16;
    if (avx512) found[k++] = &kW4Avx512;
    if (avx2) found[k++] = &kW4Avx2;
#endif
    found[k++] = &kW4Scalar;
    return k;
  }();
  *count = n;
  return found;
}

const W4Kernel* w4_select(Float x_type) {
  int count;
  const W4Kernel* const* kernels = w4_kernels(&count);
  const char* wanted = std::getenv("TARQ_CPU_ISA");
  for (int k = 0; k < count; ++k) {
    if (wanted && *wanted && std::strcmp(wanted, kernels[k]->isa) != 0) continue;
    if (kernels[k]->element == Float::f32 || kernels[k]->element == x_type) return kernels[k];
    wanted = nullptr;  // a bf16 kernel was asked for, and x is not bf16: the next best serves
  }
  return nullptr;
}

}  // namespace tarq
