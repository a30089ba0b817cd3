#include "cpu/ceilings.h"

#include "cpu/isa.h"

#if defined(__x86_64__)
// GCC 12 takes the don't-care operand of its own intrinsics for an uninitialised variable.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#endif

namespace tarq {
namespace {

constexpr int kChains = 16;  // in flight: more than latency times ports

#if defined(__x86_64__)
#define TARQ_TARGET(isa) __attribute__((target(isa)))

TARQ_TARGET("avx512f") uint64_t read_avx512(const char* data, int64_t count) {
  __m512i sums[8] = {};
  for (int64_t i = 0; i < count; i += 512)
    for (int k = 0; k < 8; ++k) sums[k] = _mm512_xor_si512(sums[k], _mm512_load_si512(data + i + 64 * k));
  for (int k = 1; k < 8; ++k) sums[0] = _mm512_xor_si512(sums[0], sums[k]);
  return uint64_t(_mm512_reduce_or_epi64(sums[0]));
}

TARQ_TARGET("avx2") uint64_t read_avx2(const char* data, int64_t count) {
  __m256i sums[8] = {};
  for (int64_t i = 0; i < count; i += 256)
    for (int k = 0; k < 8; ++k)
      sums[k] =
          _mm256_xor_si256(sums[k], _mm256_load_si256(reinterpret_cast<const __m256i*>(data + i + 32 * k)));
  for (int k = 1; k < 8; ++k) sums[0] = _mm256_xor_si256(sums[0], sums[k]);
  return uint64_t(_mm256_extract_epi64(sums[0], 0)) | uint64_t(_mm256_extract_epi64(sums[0], 1));
}

// The asm statement makes the compiler believe that a sum is changed: it can neither merge chains nor leave
// them out.
TARQ_TARGET("avx512f") void multiply_avx512(int64_t iterations) {
  __m512 sums[kChains] = {}, a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(1e-9f);
  for (int64_t i = 0; i < iterations; ++i)
#pragma GCC unroll 16
    for (int k = 0; k < kChains; ++k) {
      sums[k] = _mm512_fmadd_ps(a, b, sums[k]);
      asm volatile("" : "+v"(sums[k]));
    }
}

TARQ_TARGET("avx2,fma") void multiply_avx2(int64_t iterations) {
  __m256 sums[kChains - 4] = {}, a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(1e-9f);
  for (int64_t i = 0; i < iterations; ++i)
#pragma GCC unroll 16
    for (int k = 0; k < kChains - 4; ++k) {
      sums[k] = _mm256_fmadd_ps(a, b, sums[k]);
      asm volatile("" : "+x"(sums[k]));
    }
}

TARQ_TARGET("avx512f,avx512bf16") void multiply_bf16(int64_t iterations) {
  __m512 sums[kChains] = {};
  const __m512bh a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3c003c00)), b = a;
  for (int64_t i = 0; i < iterations; ++i)
#pragma GCC unroll 16
    for (int k = 0; k < kChains; ++k) {
      sums[k] = _mm512_dpbf16_ps(sums[k], a, b);
      asm volatile("" : "+v"(sums[k]));
    }
}

TARQ_TARGET("avx512f,avx512vnni") void multiply_int8(int64_t iterations) {
  __m512i sums[kChains] = {}, a = _mm512_set1_epi32(0x01010101), b = a;
  for (int64_t i = 0; i < iterations; ++i)
#pragma GCC unroll 16
    for (int k = 0; k < kChains; ++k) {
      sums[k] = _mm512_dpbusd_epi32(sums[k], a, b);
      asm volatile("" : "+v"(sums[k]));
    }
}

struct TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

/// Four products of tiles of 16 rows of 64 bytes an iteration.
TARQ_TARGET("amx-tile,amx-int8,amx-bf16") void multiply_tiles(bool int8, int64_t iterations) {
  const TileShapes shapes;
  asm volatile("" : : "r"(&shapes) : "memory");  // GCC 12 believes that only eight bytes are read
  _tile_loadconfig(&shapes);
  for (int64_t i = 0; int8 && i < iterations; ++i) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  for (int64_t i = 0; !int8 && i < iterations; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
}
#endif

}  // namespace

uint64_t read_bytes(const void* data, int64_t count) {
  const char* bytes = static_cast<const char*>(data);
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return read_avx512(bytes, count);
  if (__builtin_cpu_supports("avx2")) return read_avx2(bytes, count);
#endif
  uint64_t sum = 0;
  for (int64_t i = 0; i < count; i += 8) sum ^= *reinterpret_cast<const uint64_t*>(bytes + i);
  return sum;
}

double multiply_add(Multiply kind, int64_t iterations) {
#if defined(__x86_64__)
  const double sixteens = 16.0 * 2 * kChains * double(iterations);
  switch (kind) {
    case Multiply::f32:
      if (__builtin_cpu_supports("avx512f")) return multiply_avx512(iterations), sixteens;
      if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return multiply_avx2(iterations), 8.0 * 2 * (kChains - 4) * double(iterations);
      break;
    case Multiply::bf16:
      if (__builtin_cpu_supports("avx512bf16")) return multiply_bf16(iterations), 2 * sixteens;
      break;
    case Multiply::int8:
      if (isa_allowed(Isa::avx512_amx))
        return multiply_tiles(true, iterations), 4 * 2.0 * 16 * 16 * 64 * double(iterations);
      if (__builtin_cpu_supports("avx512vnni")) return multiply_int8(iterations), 4 * sixteens;
      break;
    case Multiply::bf16_tiles:
      if (isa_allowed(Isa::avx512_amx) && __builtin_cpu_supports("amx-bf16"))
        return multiply_tiles(false, iterations), 4 * 2.0 * 16 * 16 * 32 * double(iterations);
      break;
  }
#endif
  (void)kind, (void)iterations;
  return 0.0;
}

}  // namespace tarq
