// Portable kernel, and the choice among those this machine can run.
#include "gram.h"

#include <cstdlib>
#include <cstring>

#include "gram_body.h"

namespace tarq {

#if defined(__x86_64__)
extern const GramKernel kGramAvx2;
extern const GramKernel kGramAvx512;
extern const GramKernel kGramAvx512Bf16;
#endif

namespace {

struct Portable {
  using Step = float;
  struct Vector {
    float of[8];
  };
  static constexpr bool pairs = false;
  static constexpr int64_t panel = 8, depth = 256;

  static Vector zero() { return {}; }
  static Vector load(const float* from) {
    Vector v;
    for (int i = 0; i < 8; ++i) v.of[i] = from[i];
    return v;
  }
  static Vector get(const float* from) { return load(from); }
  static void put(float* to, Vector v) {
    for (int i = 0; i < 8; ++i) to[i] = v.of[i];
  }
  static Vector add(Vector a, Vector b) {
    for (int i = 0; i < 8; ++i) a.of[i] += b.of[i];
    return a;
  }
  static float splat(float value) { return value; }
  static Vector dot(Vector sum, float y, Vector x) {
    for (int i = 0; i < 8; ++i) sum.of[i] += y * x.of[i];
    return sum;
  }
  static void pack_step(const GramRows& rows, int64_t row, int64_t, int64_t column, float* to) {
    for (int64_t c = 0; c < panel; ++c) to[c] = weighted(rows, row, column + c);
  }
};

constexpr GramKernel kGramPortable = make_gram_kernel<Portable>("generic");

}  // namespace

const GramKernel& gram_kernel(bool bf16) {
#if defined(__x86_64__)
  // Read at every call: it costs nothing beside the product, and lets one process test them all.
  const char* highest = std::getenv("TARQ_CPU_ISA");
  const auto allows = [&](const char* isa) {
    return !highest || !*highest || std::strcmp(highest, isa) == 0;
  };
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool generic =
      highest && (std::strcmp(highest, "generic") == 0 || std::strcmp(highest, "scalar") == 0);
  const bool only_avx2 = highest && std::strcmp(highest, "avx2") == 0;
  if (bf16 && avx512 && __builtin_cpu_supports("avx512bf16") && allows("avx512_bf16")) return kGramAvx512Bf16;
  if (avx512 && !generic && !only_avx2) return kGramAvx512;
  if (avx2 && !generic) return kGramAvx2;
#else
  (void)bf16;
#endif
  return kGramPortable;
}

}  // namespace tarq
