// The floating-point types of tensors, and their scalar conversions. The functions are in an anonymous
// namespace: a copy compiled for a newer instruction set must not be the one the linker keeps for all.
#pragma once

#include <cstdint>
#include <cstring>

namespace tarq {

enum class Float : int { f32, f16, bf16 };

namespace {

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float bf16_to_float(uint16_t half) { return from_bits(uint32_t(half) << 16); }

inline uint16_t float_to_bf16(float value) {  // round to nearest even
  const uint32_t bits = to_bits(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, rest = half & 0x7fff;
  if (rest >= 0x7c00) return from_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  // The exponent field is 112 short; scaling by 2^112 corrects that, for subnormal numbers too.
  return from_bits(sign | to_bits(from_bits(rest << 13) * 0x1p112f));
}

inline uint16_t float_to_half(float value) {  // round to nearest even
  const uint32_t bits = to_bits(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (rest >= 0x477ff000) return uint16_t(sign | 0x7c00);
  if (rest < 0x38800000)  // subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits
    return uint16_t(sign | (to_bits(from_bits(rest) + 0.5f) - 0x3f000000));
  return uint16_t(sign | (((rest + 0xfff + (rest >> 13 & 1)) >> 13) - 0x1c000));
}

inline float read(const void* data, Float type, int64_t i) {
  if (type == Float::f32) return static_cast<const float*>(data)[i];
  const uint16_t half = static_cast<const uint16_t*>(data)[i];
  return type == Float::bf16 ? bf16_to_float(half) : half_to_float(half);
}

inline void write(void* data, Float type, int64_t i, float value) {
  if (type == Float::f32)
    static_cast<float*>(data)[i] = value;
  else
    static_cast<uint16_t*>(data)[i] = type == Float::bf16 ? float_to_bf16(value) : float_to_half(value);
}

inline void assign(float* to, float value) { *to = value; }
inline void assign(uint16_t* to, float value) { *to = float_to_bf16(value); }

}  // namespace
}  // namespace tarq
