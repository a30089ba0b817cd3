// What the two AVX-512 kernels share. Included after their `#pragma GCC target` and <immintrin.h>.
#pragma once

#include <cstdint>

namespace tarq {
namespace {

struct Avx512Sums {
  using Vector = __m512;
  static constexpr int64_t panel = 16;

  static Vector zero() { return _mm512_setzero_ps(); }
  static Vector get(const float* from) { return _mm512_loadu_ps(from); }
  static void put(float* to, Vector v) { _mm512_storeu_ps(to, v); }
  static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
};

}  // namespace
}  // namespace tarq
