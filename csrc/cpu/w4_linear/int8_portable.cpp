// Portable int8 kernel, and the choice among those this machine can run.
#include <cstring>

#include "cpu/isa.h"
#include "cpu/w4_linear/int8.h"
#include "cpu/w4_linear/int8_engine.h"

namespace tarq {

#if defined(__x86_64__)
extern const W4Int8Kernel kW4Int8Avx2;
extern const W4Int8Kernel kW4Int8Avx512Vnni;
extern const W4Int8Kernel kW4Int8Avx512Amx;
#endif

namespace {

struct Portable {
  using Words = uint32_t;
  using Bytes = uint32_t;
  using Lanes = int32_t;
  using Sum = float;
  struct Four {
    float of[kTile];
  };
  static constexpr int lanes = 1, int8_rows = 2, joined = 1;

  struct Window {};
  static Window window(int64_t) { return {}; }
  static Words load_words(const uint32_t* from, Window) { return *from; }
  static Words low(Words words) { return words & 0x0f0f0f0f; }
  static Words high(Words words) { return words >> 4 & 0x0f0f0f0f; }
  static Words ones() { return 0x01010101; }
  static Words eights() { return 0x08080808; }
  static Bytes load_bytes(const int8_t* from) {
    Bytes bytes;
    std::memcpy(&bytes, from, 4);
    return bytes;
  }
  static Lanes no_sums() { return 0; }
  static Lanes load_lanes(const int32_t* from) { return *from; }
  static void store_negative(int32_t* to, Lanes sums) { *to = -sums; }
  static Lanes dot(Lanes sum, Words codes, Bytes x) {
    for (int i = 0; i < 32; i += 8) sum += int32_t(codes >> i & 255) * int8_t(x >> i);
    return sum;
  }
  static Sum zero() { return 0.0f; }
  static Sum to_float(Lanes sums) { return float(sums); }
  template <int>
  static Sum spread(const float* values) {
    return *values;
  }
  static Sum multiply_add(Sum sum, Sum a, Sum b) { return sum + a * b; }
  static Sum multiply(Sum a, Sum b) { return a * b; }
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
};

constexpr W4Int8Kernel kW4Int8Portable = make_int8_kernel<Portable>("scalar");

}  // namespace

const W4Int8Kernel& w4_int8_kernel(const W4Layer& layer, int64_t rows) {
#if defined(__x86_64__)
  constexpr int64_t kTileRows = 16;  // fewer leave rows of a tile empty
  const bool whole_blocks = layer.groups == 1 || layer.group_size % kW4Int8Avx512Amx.block == 0;
  if (rows >= kTileRows && whole_blocks && isa_allowed(Isa::avx512_amx)) return kW4Int8Avx512Amx;
  if (isa_allowed(Isa::avx512_vnni)) return kW4Int8Avx512Vnni;
  if (isa_allowed(Isa::avx2)) return kW4Int8Avx2;
#endif
  (void)layer, (void)rows;
  isa_allowed(Isa::scalar);  // refuses an unknown name
  return kW4Int8Portable;
}

}  // namespace tarq
