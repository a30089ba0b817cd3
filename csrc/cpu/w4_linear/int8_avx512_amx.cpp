// AMX for many rows: a tile instruction multiplies 16 activation rows by 16 outputs, 64 inputs deep. Of a
// block of 128 inputs the activations' even ones and the low nibbles of 16 words are one such depth, the odd
// ones and the high nibbles the other; words of 16 outputs, transposed, are the right operand in the required
// layout.
#if defined(__x86_64__)
#include <cstdint>
#include <cstring>
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,amx-tile,amx-int8,avx2,fma,f16c")
// GCC 12 takes the don't-care operand of its own intrinsics for an uninitialised variable.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "cpu/w4_linear/avx512_vnni.h"
#include "cpu/w4_linear/many_rows.h"

namespace tarq {
namespace {

struct Amx : Avx512Vnni {
  static constexpr int64_t depth = 0;  // Panel's decoded weights are not used
};

constexpr int64_t kTileRows = 16, kTileBytes = 1024;

/// Registers 0 … 2 hold sums, 3 activations (all of `rows` rows), 4 … 6 weights.
void configure(int64_t rows) {
  struct {
    uint8_t palette, start;
    uint8_t reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } tiles = {};
  static_assert(sizeof(tiles) == 64);
  tiles.palette = 1;
  for (int i = 0; i < 7; ++i) {
    tiles.row_bytes[i] = 64;
    tiles.rows[i] = uint8_t(i < 4 ? rows : kTileRows);
  }
  __asm__ volatile("" : : "r"(&tiles) : "memory");  // GCC 12 believes that only eight bytes are read
  _tile_loadconfig(&tiles);
}

/// A thread's scratch, behind that of Panel.
struct AmxScratch {
  uint8_t* weights;   // [blocks, low and high nibbles, kVectors] tiles
  int32_t* products;  // [kVectors] tiles
  float* totals;      // [kRowBlock, runs]: the activations' sums

  static int64_t panel_bytes(const W4Layer& layer) { return round_up(many_scratch_bytes<Amx>(layer), 64); }
  static int64_t weight_bytes(const W4Layer& layer) { return padded_inputs<Amx>(layer) * kPanel<Amx>; }
  static int64_t bytes(const W4Layer& layer) {
    const int64_t totals = kRowBlock * Runs::of<Amx>(layer).count * int64_t(sizeof(float));
    return panel_bytes(layer) + weight_bytes(layer) + kVectors * kTileBytes + totals;
  }
  AmxScratch(void* scratch, const W4Layer& layer) {
    weights = static_cast<uint8_t*>(scratch) + panel_bytes(layer);
    products = reinterpret_cast<int32_t*>(weights + weight_bytes(layer));
    totals = reinterpret_cast<float*>(products) + kVectors * kTileBytes / int64_t(sizeof(float));
  }

  void decode(const W4Layer& layer, int64_t first) const {
    const int64_t words = ceil_div(layer.in_features, 8);
    for (int v = 0; v < kVectors; ++v) {
      const uint32_t* rows[Amx::lanes];
      for (int i = 0; i < Amx::lanes; ++i)
        rows[i] = layer.codes + clamp_row(layer, first + v * Amx::lanes + i) * words;
      for (int64_t w = 0; w < words; w += Amx::lanes) {
        __m512i columns[Amx::lanes];
        Amx::load_columns(rows, w, words - w, columns);
        uint8_t* const low = weights + (w / Amx::lanes * 2 * kVectors + v) * kTileBytes;
        for (int i = 0; i < Amx::lanes; ++i) {
          _mm512_storeu_si512(low + 64 * i, Amx::low(columns[i]));
          _mm512_storeu_si512(low + kVectors * kTileBytes + 64 * i, Amx::high(columns[i]));
        }
      }
    }
  }

  /// `products` of blocks [begin, end) with activation rows that lie `stride` apart.
  void multiply(const int8_t* x, int64_t stride, int64_t begin, int64_t end) const {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    const uint8_t* w = weights + begin * 2 * kVectors * kTileBytes;
    for (int64_t half = 2 * begin; half < 2 * end; ++half, w += kVectors * kTileBytes) {
      _tile_loadd(3, x + half * 64, stride);
      _tile_loadd(4, w, 64);
      _tile_dpbssd(0, 3, 4);
      _tile_loadd(5, w + kTileBytes, 64);
      _tile_dpbssd(1, 3, 5);
      _tile_loadd(6, w + 2 * kTileBytes, 64);
      _tile_dpbssd(2, 3, 6);
    }
    _tile_stored(0, products, 64);
    _tile_stored(1, products + 256, 64);
    _tile_stored(2, products + 512, 64);
  }
};

/// Adds `products` of a group, less the zero points' share and scaled, to sums [rows, kPanel].
template <bool symmetric>
void add_scaled(const AmxScratch& scratch, const Panel<Amx>& panel, int64_t group, int64_t rows,
                const float* totals, int64_t total_stride, const float* steps, int64_t step_stride,
                float* sums) {
  __m512 scales[kVectors], zeros[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    scales[v] = Amx::load_sums(panel.scales + group * kPanel<Amx> + v * Amx::lanes);
    if constexpr (!symmetric) zeros[v] = Amx::load_sums(panel.zeros + group * kPanel<Amx> + v * Amx::lanes);
  }
  for (int64_t m = 0; m < rows; ++m, sums += kPanel<Amx>) {
    const __m512 total = _mm512_set1_ps(totals[m * total_stride]),
                 step = _mm512_set1_ps(steps[m * step_stride]);
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      const __m512 products = Amx::to_float(Amx::load_lanes(scratch.products + v * 256 + m * Amx::lanes));
      const __m512 centred =
          symmetric ? _mm512_add_ps(products, total) : _mm512_fmadd_ps(total, zeros[v], products);
      float* const sum = sums + v * Amx::lanes;
      Amx::store_sums(sum, _mm512_fmadd_ps(_mm512_mul_ps(centred, scales[v]), step, Amx::load_sums(sum)));
    }
  }
}

int64_t scratch_bytes(const W4Layer& layer) {
  const int64_t own = AmxScratch::bytes(layer), quantize = int8_scratch_bytes<Amx>(layer);
  return own > quantize ? own : quantize;
}

void multiply(const W4Layer& layer, const Int8Input& x, void* y, Float y_type, int64_t begin, int64_t end,
              void* space) {
  const W4Product product{
      .x = nullptr, .rows = x.rows, .stride = 0, .sums = nullptr, .sum_stride = 0, .y = y, .y_type = y_type};
  const AmxScratch scratch(space, layer);
  Panel<Amx> panel(space, layer);
  const Runs runs = Runs::of<Amx>(layer);
  for (int64_t m0 = 0; m0 < x.rows; m0 += kRowBlock) {
    const int64_t m1 = m0 + kRowBlock < x.rows ? m0 + kRowBlock : x.rows;
    for (int64_t i = 0; i < (m1 - m0) * runs.count; ++i)
      scratch.totals[i] =
          float(_mm512_reduce_add_epi32(Amx::load_lanes(x.sums + (m0 * runs.count + i) * Amx::lanes)));
    for (int64_t n = begin; n < end; n += kPanel<Amx>) {
      const int64_t count = end - n < kPanel<Amx> ? end - n : kPanel<Amx>;
      panel.read_outputs(layer, n);
      scratch.decode(layer, n);
      configure(kTileRows);
      for (int64_t m = m0; m < m1; m += kTileRows) {
        const int64_t rows = m1 - m < kTileRows ? m1 - m : kTileRows;
        if (rows < kTileRows) configure(rows);
        std::memset(panel.sums, 0, size_t(rows * kPanel<Amx>) * sizeof(float));
        for (int64_t run = 0, b = 0; run < runs.count; ++run, b += runs.length) {
          const int64_t next = b + runs.length;
          scratch.multiply(x.codes + m * x.padded, x.padded, b, next < runs.blocks ? next : runs.blocks);
          const auto add = layer.zeros ? add_scaled<false> : add_scaled<true>;
          add(scratch, panel, run, rows, scratch.totals + (m - m0) * runs.count + run, runs.count,
              x.scales + m * x.groups + run, x.groups, panel.sums);
        }
        for (int64_t i = 0; i < rows; ++i)
          write_outputs(layer, product, m + i, n, count, panel, panel.sums + i * kPanel<Amx>);
      }
      _tile_release();
    }
  }
}

}  // namespace

extern const W4Int8Kernel kW4Int8Avx512Amx;
const W4Int8Kernel kW4Int8Avx512Amx = {"avx512_amx", kBlock<Amx>, scratch_bytes, quantize_int8<Amx>,
                                       multiply};

}  // namespace tarq
#endif
