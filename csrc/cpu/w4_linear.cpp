// Portable kernel, and the choice among those this machine can run.
#include "w4_linear.h"

#include "isa.h"
#include "w4_linear_body.h"

namespace tarq {
namespace {

struct Scalar {
  using Element = float;
  using Words = uint32_t;
  using Vector = float;
  using Sum = float;
  struct Four {
    float of[kTile];
  };
  struct Table {
    float of[16];
  };
  static constexpr int lanes = 1, steps = 8, width = 1, fused_rows = 4, micro_rows = 2;
  static constexpr bool scale_after = false;

  static int source(int e) { return e; }
  struct Window {};
  static Window window(int64_t) { return {}; }
  static Words load_words(const uint32_t* from, Window) { return *from; }
  static Words shift(Words words) { return words >> 4; }
  static Table weight_table(float scale, float zero) {
    Table table;
    for (int code = 0; code < 16; ++code) table.of[code] = (float(code) - zero) * scale;
    return table;
  }
  template <int parts>
  static Vector lookup(const Table* table, Words words) {
    return table->of[words & 15];
  }
  static Vector load(const float* from) { return *from; }
  static void store(float* to, Vector v) { *to = v; }
  static Sum zero() { return 0.0f; }
  static Sum add(Sum a, Sum b) { return a + b; }
  static Sum dot(Sum sum, Vector w, Vector x) { return sum + w * x; }
  static Four load_four(const float* from) { return {{from[0], from[1], from[2], from[3]}}; }
  static Four reduce(const Sum* sums) { return load_four(sums); }
  static Four add_four(Four a, Four b) {
    for (int r = 0; r < kTile; ++r) a.of[r] += b.of[r];
    return a;
  }
  static void write_four(void* to, Float type, int64_t i, Four values) {
    for (int r = 0; r < kTile; ++r) write(to, type, i + r, values.of[r]);
  }
  static void to_float(const void* from, Float type, int64_t first, int64_t count, float* to) {
    for (int64_t i = 0; i < count; ++i) to[i] = read(from, type, first + i);
  }
  static void pack_block(const void* x, Float type, int64_t first, float* to) {
    to_float(x, type, first, 8, to);
  }
};

}  // namespace

const W4Kernel kW4Scalar = make_kernel<Scalar>("scalar", Float::f32, 8);

const W4Kernel& w4_kernel(Float x_type) {
#if defined(__x86_64__)
  if (x_type == Float::bf16 && isa_allowed(Isa::avx512_bf16)) return kW4Avx512Bf16;
  if (isa_allowed(Isa::avx512)) return kW4Avx512;
  if (isa_allowed(Isa::avx2)) return kW4Avx2;
#endif
  isa_allowed(Isa::scalar);  // refuses a name that is none
  return kW4Scalar;
}

}  // namespace tarq
