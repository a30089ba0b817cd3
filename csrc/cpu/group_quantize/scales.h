// A group's scale and zero point. See vectors.h.
#pragma once

#include "cpu/group_quantize/vectors.h"

namespace tarq::TARQ_ISA {
namespace {

// A scale as its stored dtype will hold it: once it is a normal number, only the mantissa is to be rounded.
template <typename T>
TARQ_INLINE Vec<T> stored(Vec<T> scale, const Lattice& lattice) {
  using Bits = typename Simd<T>::Bits;
  using Single = typename Simd<T>::Single;
  scale = lesser(greater(scale, splat(T(lattice.least_scale))), splat(T(lattice.largest_scale)));
  Single single = __builtin_convertvector(scale, Single);
  if (lattice.dropped_bits > 0) {
    const int drop = lattice.dropped_bits;
    Bits bits = (Bits)single;
    bits += ((bits >> drop) & 1) + ((1 << (drop - 1)) - 1);
    single = (Single)(bits & -(1 << drop));
  }
  return __builtin_convertvector(single, Vec<T>);
}

// Scale and zero point of one vector of rows; `weights` is transposed, one column every kTile.
template <typename T>
void choose_scale(const T* weights, int64_t count, const Lattice& lattice, T* scale_out, T* zero_out) {
  const Vec<T> nought = {}, one = splat(T(1)), codes = splat(T(lattice.max_code));
  Vec<T> low = load(weights), high = low;
  for (int64_t j = 1; j < count; ++j) {
    const Vec<T> w = load(weights + j * kTile<T>);
    low = lesser(low, w);
    high = greater(high, w);
  }
  const Vec<T> magnitude = greater(-low, high);
  Vec<T> base, zero = splat(T(lattice.symmetric_zero));
  if (lattice.symmetric) {
    base = magnitude / (codes / T(2));
    if (lattice.rule == ScaleRule::kMinmax) base = high > low ? (high - low) / codes : base;
  } else {
    low = lesser(low, nought);
    base = (greater(high, nought) - low) / codes;
  }
  Vec<T> scale = stored<T>(base, lattice);
  if (!lattice.symmetric) zero = round_within<T>(-low / scale, nought, codes);

  if (lattice.rule == ScaleRule::kMse) {
    Vec<T> least = splat(T(__builtin_inf()));
    const Vec<T> first_zero = zero;
    Vec<T> best = scale;
    for (int k = 0; k < kShrinks; ++k) {
      const T shrink = T(1.0 - kShrinkStep * k);
      const Vec<T> tried = stored<T>(base * shrink, lattice), inverse = one / tried;
      const Vec<T> shift =
          lattice.symmetric ? first_zero : round_within<T>(-low * shrink / tried, nought, codes);
      Vec<T> error = {};
      for (int64_t j = 0; j < count; ++j) {
        const Vec<T> w = load(weights + j * kTile<T>);
        const Vec<T> missed = w - round_within<T>(w * inverse, -shift, codes - shift) * tried;
        error += missed * missed;
      }
      best = error < least ? tried : best;
      zero = error < least ? shift : zero;
      least = lesser(least, error);
    }
    scale = best;
  }
  store<T>(scale_out, magnitude > nought ? scale : one);
  store<T>(zero_out, zero);
}

}  // namespace
}  // namespace tarq::TARQ_ISA
