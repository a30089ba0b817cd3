// Portable kernel, and the choice among those this machine can run.
#include "cpu/gram/engine.h"
#include "cpu/gram/gram.h"
#include "cpu/isa.h"

namespace tarq {

#if defined(__x86_64__)
extern const GramKernel kGramAvx2;
extern const GramKernel kGramAvx512;
extern const GramKernel kGramAvx512Bf16;
const GramKernel& gram_tiles(Float left, Float right, bool weighted, bool drift);
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

constexpr GramKernel kGramPortable = make_gram_kernel<Portable>("scalar");

}  // namespace

const GramKernel& gram_kernel(Float left, Float right, bool weighted, bool drift) {
#if defined(__x86_64__)
  if (bf16_tiles_chosen()) return gram_tiles(left, right, weighted, drift);
  const bool bf16 = left == Float::bf16 && right == Float::bf16 && !weighted && !drift;
  if (bf16 && bf16_chosen()) return kGramAvx512Bf16;
  if (isa_allowed(Isa::avx512)) return kGramAvx512;
  if (isa_allowed(Isa::avx2)) return kGramAvx2;
#else
  (void)left, (void)right, (void)weighted, (void)drift;
#endif
  isa_allowed(Isa::scalar);  // refuses an unknown name
  return kGramPortable;
}

}  // namespace tarq
