// AMX: a tile instruction multiplies 16 columns by 16 columns, 32 positions deep, in bf16 with sums in fp32.
//
// A value is the sum of one to three bf16 parts, each the nearest number to what those before it leave: one
// holds bf16, two hold fp16, three hold fp32, whatever has been multiplied by a weight, and differences.
// Products of bf16 numbers are exact in fp32. Of the products of parts, those below 2^-24 of the whole are
// left out: six of fp32's nine remain. The sums of 32 positions are made apart before they are added, so
// fewer roundings follow each other than in the fp32 kernels. Parts and products below 2^-126 count as zeros,
// and numbers that round to none of bf16 (the last 1/512 of fp32's range) as infinite.
//
//        right panel:   [32 positions][parts][16 pairs of positions][16 columns][2]
//        left panel:    [32 positions][parts][16 columns][32 positions]
#if defined(__x86_64__)
#include <cstdint>
#include <cstring>
#include <utility>
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16,avx2,fma,f16c")
// GCC 12 takes the don't-care operand of its own intrinsics for an uninitialised variable.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "cpu/gram/gram.h"

namespace tarq {
namespace {

constexpr int64_t kPanel = 16, kPositions = 32, kTileBytes = 1024;

int64_t steps_of(int64_t positions) { return (positions + kPositions - 1) / kPositions; }

__mmask16 first_columns(int64_t count) {
  return count <= 0 ? __mmask16(0) : count < kPanel ? __mmask16((1 << count) - 1) : __mmask16(0xffff);
}

/// The positions of one step; those past the last are rows of zeros.
struct Positions {
  const char *rows[kPositions], *origins[kPositions];
  float weights[kPositions];

  Positions(const GramRows& from, int64_t first, int64_t count, int64_t bytes) {
    for (int64_t i = 0; i < kPositions; ++i) {
      const int64_t t = first + (i < count ? i : 0), row = from.index ? from.index[t] : t;
      const auto at = [&](const void* data, int64_t stride) {
        return data && i < count ? static_cast<const char*>(data) + row * stride * bytes : nullptr;
      };
      rows[i] = at(from.data, from.stride), origins[i] = at(from.origin, from.origin_stride);
      weights[i] = from.weight ? from.weight[row] : 1.0f;
    }
  }
};

template <Float type>
constexpr int64_t kBytes = type == Float::f32 ? 4 : 2;

template <Float type>
__m256i load_half(const char* row, int64_t column, __mmask16 columns) {
  return row ? _mm256_maskz_loadu_epi16(columns, row + column * 2) : _mm256_setzero_si256();
}

template <Float type>
__m512 load_float(const char* row, int64_t column, __mmask16 columns) {
  if constexpr (type == Float::f32)
    return row ? _mm512_maskz_loadu_ps(columns, row + column * 4) : _mm512_setzero_ps();
  else if constexpr (type == Float::f16)
    return _mm512_cvtph_ps(load_half<type>(row, column, columns));
  else
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(load_half<type>(row, column, columns)), 16));
}

template <Float type, bool weighted, bool drift>
__m512 load(const Positions& from, int64_t i, int64_t column, __mmask16 columns) {
  __m512 v = load_float<type>(from.rows[i], column, columns);
  if constexpr (drift) v = _mm512_sub_ps(v, load_float<type>(from.origins[i], column, columns));
  return weighted ? _mm512_mul_ps(v, _mm512_set1_ps(from.weights[i])) : v;
}

/// Columns of two halves, by turns.
__m512i interleave(__m512i halves) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7,
                                         22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, halves);
}

/// Sixteen columns of a step in `parts` tiles, as the right operand has them.
template <Float type, bool weighted, bool drift, int parts>
void split(const Positions& from, int64_t column, __mmask16 columns, char* to) {
  for (int64_t i = 0; i < kPositions; i += 2, to += 64) {
    if constexpr (parts == 1) {
      const __m256i low = load_half<type>(from.rows[i], column, columns),
                    high = load_half<type>(from.rows[i + 1], column, columns);
      _mm512_store_si512(to, interleave(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)));
    } else {
      __m512 low = load<type, weighted, drift>(from, i, column, columns),
             high = load<type, weighted, drift>(from, i + 1, column, columns);
#pragma GCC unroll 3
      for (int part = 0; part < parts; ++part) {
        const __m512i pairs = interleave(reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
        _mm512_store_si512(to + part * kTileBytes, pairs);
        if (part + 1 == parts) break;
        low = _mm512_sub_ps(low, _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)));
        high = _mm512_sub_ps(high, _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536))));
      }
    }
  }
}

/// A tile of 16 by 16 pairs, transposed: four rows at a time become a quarter of each output row.
void transpose(const char* from, char* to) {
  const auto quarter = [&](int row, int column) {
    return _mm_load_si128(reinterpret_cast<const __m128i*>(from + 64 * row + 16 * column));
  };
#pragma GCC unroll 4
  for (int column = 0; column < 4; ++column) {
    __m512i rows[4];  // 128-bit lane q is of row 4·q + i
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      rows[i] = _mm512_castsi128_si512(quarter(i, column));
      rows[i] = _mm512_inserti32x4(rows[i], quarter(4 + i, column), 1);
      rows[i] = _mm512_inserti32x4(rows[i], quarter(8 + i, column), 2);
      rows[i] = _mm512_inserti32x4(rows[i], quarter(12 + i, column), 3);
    }
    const __m512i a = _mm512_unpacklo_epi32(rows[0], rows[1]), b = _mm512_unpackhi_epi32(rows[0], rows[1]),
                  c = _mm512_unpacklo_epi32(rows[2], rows[3]), d = _mm512_unpackhi_epi32(rows[2], rows[3]);
    char* const out = to + 256 * column;
    _mm512_store_si512(out, _mm512_unpacklo_epi64(a, c));
    _mm512_store_si512(out + 64, _mm512_unpackhi_epi64(a, c));
    _mm512_store_si512(out + 128, _mm512_unpacklo_epi64(b, d));
    _mm512_store_si512(out + 192, _mm512_unpackhi_epi64(b, d));
  }
}

/// Step after step, so that rows are read along their columns.
template <Float type, bool weighted, bool drift, int parts>
void pack_parts(const GramRows& rows, int64_t first, int64_t positions, int64_t begin, int64_t end,
                char* left, char* right) {
  alignas(64) char scratch[parts * kTileBytes];
  const int64_t steps = steps_of(positions);
  for (int64_t s = 0; s < steps; ++s) {
    const int64_t t = s * kPositions;
    const Positions step(rows, first + t, positions - t, kBytes<type>);
    for (int64_t p = begin; p < end; ++p) {
      const int64_t at = (p * steps + s) * parts * kTileBytes;
      char* const tiles = right ? right + at : scratch;
      split<type, weighted, drift, parts>(step, p * kPanel, first_columns(rows.columns - p * kPanel), tiles);
      for (int part = 0; left && part < parts; ++part)
        transpose(tiles + part * kTileBytes, left + at + part * kTileBytes);
    }
  }
}

/// Which parts of the left and the right operand are multiplied, the smallest products first. Of two
/// neighbours one operand is the same and stays in its registers, with fewer parts as well.
struct Pair {
  int left, right;
};
constexpr Pair kPairs[] = {{2, 0}, {1, 0}, {1, 1}, {0, 1}, {0, 0}, {0, 2}};

void configure() {
  struct {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } tiles;
  static_assert(sizeof(tiles) == 64);
  __asm__ volatile("" : : "r"(&tiles) : "memory");  // GCC 12 believes that only eight bytes are read
  _tile_loadconfig(&tiles);
}

constexpr int parts_of(Float type) { return type == Float::f32 ? 3 : type == Float::f16 ? 2 : 1; }

/// The kernel for rows of two types, those of the left operand with weights or an origin or without.
template <Float left_type, Float right_type, bool weighted, bool drift>
struct Tiles {
  static constexpr int right_parts = parts_of(right_type),
                       left_parts = weighted || drift ? 3 : parts_of(left_type);
  static constexpr int64_t depth = left_parts == 1 ? 512 : 256;
  static constexpr int64_t cached = 512 * 1024;  // of left panels, a part of the L2 cache
  static constexpr int64_t rows_per_task = cached / (2 * left_parts * depth) / kPositions * kPositions;

  static int64_t left_bytes(int64_t positions) { return steps_of(positions) * left_parts * kTileBytes; }
  static int64_t right_bytes(int64_t positions) { return steps_of(positions) * right_parts * kTileBytes; }

  static void pack(const GramRows& rows, int64_t first, int64_t positions, int64_t begin, int64_t end,
                   void* left, void* right) {
    char *const l = static_cast<char*>(left), *const r = static_cast<char*>(right);
    if (r)  // both are wanted only of rows that are their own left operand, without weights
      pack_parts<right_type, false, false, right_parts>(rows, first, positions, begin, end, l, r);
    else
      pack_parts<left_type, weighted, drift, left_parts>(rows, first, positions, begin, end, l, r);
  }

  /// Adds one product of parts; `previous` says what the registers hold.
  template <Pair pair>
  static void add(const char* const (&left)[2], const char* const (&right)[2], Pair& previous) {
    if constexpr (pair.left < left_parts && pair.right < right_parts) {
      constexpr int64_t l = pair.left * kTileBytes, r = pair.right * kTileBytes;
      if (previous.left != pair.left) _tile_loadd(4, left[0] + l, 64);
      if (previous.right != pair.right) _tile_loadd(6, right[0] + r, 64);
      _tile_dpbf16ps(0, 4, 6);
      if (previous.left != pair.left) _tile_loadd(5, left[1] + l, 64);
      _tile_dpbf16ps(2, 5, 6);
      if (previous.right != pair.right) _tile_loadd(7, right[1] + r, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
      previous = pair;
    }
  }

  /// Sums of two left panels by two right ones to four tiles.
  template <size_t... i>
  static void sum(const char* (&left)[2], const char* (&right)[2], int64_t steps, float* sums,
                  std::index_sequence<i...>) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t s = 0; s < steps; ++s) {
      Pair previous{-1, -1};
      (add<kPairs[i]>(left, right, previous), ...);
      for (int side = 0; side < 2; ++side)
        left[side] += left_parts * kTileBytes, right[side] += right_parts * kTileBytes;
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    _tile_stored(2, sums + 512, 64);
    _tile_stored(3, sums + 768, 64);
  }

  static void multiply(const GramProduct& product, int64_t j, int64_t begin, int64_t end) {
    const int64_t steps = steps_of(product.positions), column = 2 * j * kPanel;
    const auto panel = [&](const void* packed, int64_t p, int64_t columns, int parts) {
      const int64_t last = (columns - 1) / kPanel;  // read again instead of what follows it, and not stored
      return static_cast<const char*>(packed) + (p < last ? p : last) * steps * parts * kTileBytes;
    };
    const __mmask16 columns[2] = {first_columns(product.columns - column),
                                  first_columns(product.columns - column - kPanel)};
    alignas(64) float sums[4 * 256];
    configure();
    int64_t row = begin;
    if (product.triangle && row < column) row = column;
    for (; row < end; row += 2 * kPanel) {
      // Prefetch what the sums are added to while they are computed: each row is in another page.
      const int64_t rows = end - row < 2 * kPanel ? end - row : 2 * kPanel;
      float* const out = product.out + row * product.columns + column;
      for (int64_t r = 0; r < rows; ++r) {
        __builtin_prefetch(out + r * product.columns, 1);
        __builtin_prefetch(out + r * product.columns + kPanel, 1);
      }
      const char *right[2], *left[2];
      for (int side = 0; side < 2; ++side) {
        right[side] = panel(product.right, 2 * j + side, product.columns, right_parts);
        left[side] = panel(product.left, row / kPanel + side, product.rows, left_parts);
      }
      sum(left, right, steps, sums, std::make_index_sequence<sizeof(kPairs) / sizeof(Pair)>());
      for (int64_t r = 0; r < rows; ++r) {
        const float* const from = sums + r / kPanel * 512 + r % kPanel * kPanel;
        float* const to = out + r * product.columns;
        for (int p = 0; p < 2; ++p) {
          __m512 v = _mm512_load_ps(from + p * 256);
          if (product.add) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(columns[p], to + p * kPanel));
          _mm512_mask_storeu_ps(to + p * kPanel, columns[p], v);
        }
      }
    }
    _tile_release();
  }

  static constexpr GramKernel kernel = {.isa = "avx512_amx",
                                        .panel = kPanel,
                                        .width = 2,
                                        .depth = depth,
                                        .rows_per_task = rows_per_task,
                                        .two_layouts = true,
                                        .left_bytes = left_bytes,
                                        .right_bytes = right_bytes,
                                        .pack = pack,
                                        .multiply = multiply};
};

template <Float left, Float right, bool drift = false>
const GramKernel& of(bool weighted) {
  return weighted ? Tiles<left, right, true, drift>::kernel : Tiles<left, right, false, drift>::kernel;
}

template <Float right>
const GramKernel& beside(Float left, bool weighted, bool drift) {
  if (drift) return of<right, right, true>(weighted);
  return left == right ? of<right, right>(weighted) : of<Float::f32, right>(weighted);
}

}  // namespace

const GramKernel& gram_tiles(Float left, Float right, bool weighted, bool drift);
const GramKernel& gram_tiles(Float left, Float right, bool weighted, bool drift) {
  if (right == Float::f32) return beside<Float::f32>(left, weighted, drift);
  if (right == Float::f16) return beside<Float::f16>(left, weighted, drift);
  return beside<Float::bf16>(left, weighted, drift);
}

}  // namespace tarq
#endif
