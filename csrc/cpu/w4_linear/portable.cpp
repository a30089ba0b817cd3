// Portable kernel, and the choice among those this machine can run.
#include "cpu/isa.h"
#include "cpu/w4_linear/engine.h"

namespace tarq {

#if defined(__x86_64__)
extern const W4FewRows kW4FewAvx2, kW4FewAvx512, kW4FewAvx512Bf16;
extern const W4ManyRows kW4ManyAvx2, kW4ManyAvx512;
#endif

namespace {

struct Portable {
  using Element = float;
  using Words = uint32_t;
  using Vector = float;
  using Sum = float;
  struct Four {
    float of[kTile];
  };
  static constexpr int lanes = 1, steps = 8, width = 1, fused_rows = 4, together = 1, height = 4;
  static constexpr bool defers_zeros = false, fused_by_word = false;
  static constexpr int64_t depth = 256;

  static constexpr float unit(int) { return 1.0f; }
  static constexpr int weight_rows(int) { return 4; }
  struct Window {};
  static Window window(int64_t) { return {}; }
  static Words load_words(const uint32_t* from, Window) { return *from; }

  struct Steps {};
  static Steps steps_in_memory() { return {}; }
  static Steps steps_in_registers() { return {}; }
  template <int>
  struct Centred {
    float zero;
    void read(const float* zeros) { zero = *zeros; }
    Vector operator()(Words words, Steps, int j) const { return float(words >> 4 * j & 15) - zero; }
  };
  static Vector kept_in_register(Vector v) { return v; }
  static Vector load(const float* from) { return *from; }
  static Sum zero() { return 0.0f; }
  static Sum add(Sum a, Sum b) { return a + b; }
  static Sum product(Vector w, Vector x) { return w * x; }
  static Sum dot(Sum sum, Vector w, Vector x) { return sum + w * x; }
  static Sum multiply_add(Sum sum, Sum a, Sum b) { return sum + a * b; }
  template <int>
  static Sum spread(const float* values) {
    return *values;
  }
  static Four load_four(const float* from) { return {{from[0], from[1], from[2], from[3]}}; }
  static Four reduce(const Sum* sums) { return load_four(sums); }
  static Four finish(Four sums, Four bias) {
    for (int r = 0; r < kTile; ++r) bias.of[r] += sums.of[r] * kHeadroom;
    return bias;
  }
  static void write_four(void* to, Float type, int64_t i, Four values) {
    for (int r = 0; r < kTile; ++r) write(to, type, i + r, values.of[r]);
  }
  static void to_float(const void* from, Float type, int64_t first, int64_t count, float* to) {
    for (int64_t i = 0; i < count; ++i) to[i] = read(from, type, first + i);
  }
  static void pack_block(const void* x, Float type, int64_t first, float* to, float*) {
    for (int64_t i = 0; i < 8; ++i) to[i] = read(x, type, first + i) / kHeadroom;
  }

  static void load_columns(const uint32_t* const* rows, int64_t w, int64_t, Words* out) { *out = rows[0][w]; }
  template <bool symmetric>
  static Sum word_codes(Words words, int j) {
    return float(words >> 4 * j & 15) - (symmetric ? 8.0f : 0.0f);
  }
  static Sum load_sums(const float* from) { return *from; }
  static void store_sums(float* to, Sum v) { *to = v; }
  static void write_sums(void* to, Float type, int64_t i, Sum v) { write(to, type, i, v); }
  static Sum multiply(Sum a, Sum b) { return a * b; }
  static Sum subtract(Sum a, Sum b) { return a - b; }
  static void pack_columns(const void* x, Float type, int64_t first, int64_t stride, int64_t rows,
                           float* to) {
    for (int k = 0; k < 8; ++k)
      for (int r = 0; r < height; ++r)
        to[k * height + r] = r < rows ? read(x, type, first + r * stride + k) : 0.0f;
  }
};

const W4FewRows kFewPortable = make_few_rows<Portable>("scalar");
const W4ManyRows kManyPortable = make_many_rows<Portable>("scalar");

const W4FewRows& few_rows_kernel(Float x_type, int64_t rows) {
#if defined(__x86_64__)
  if (x_type == Float::bf16 && rows <= kW4FewAvx512Bf16.rows && bf16_chosen()) return kW4FewAvx512Bf16;
  if (isa_allowed(Isa::avx512)) return kW4FewAvx512;
  if (isa_allowed(Isa::avx2)) return kW4FewAvx2;
#endif
  isa_allowed(Isa::scalar);  // refuses an unknown name
  return kFewPortable;
}

}  // namespace

const W4FewRows* w4_few_rows(const W4Layer& layer, Float x_type, int64_t rows) {
  const W4FewRows& kernel = few_rows_kernel(x_type, rows);
  return rows <= kernel.rows && kernel.serves(layer) ? &kernel : nullptr;
}

const W4ManyRows& w4_many_rows() {
#if defined(__x86_64__)
  if (isa_allowed(Isa::avx512)) return kW4ManyAvx512;
  if (isa_allowed(Isa::avx2)) return kW4ManyAvx2;
#endif
  isa_allowed(Isa::scalar);
  return kManyPortable;
}

}  // namespace tarq
