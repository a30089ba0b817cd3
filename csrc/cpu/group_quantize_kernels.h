// The body of group_quantize, compiled once per instruction set. The including file sets the target, then
//   TARQ_ISA           name of the instruction set, used as a namespace
//   TARQ_VECTOR_BYTES  width of a vector register
//   TARQ_PANEL         columns of L per panel: TARQ_PANEL × 3 accumulators stay in registers
// Only GCC vector extensions are used, so that one text serves every instruction set, and no template of the
// standard library: an inline copy of it made for AVX-512 could be the one the linker keeps for everybody.
//
// Everything rests on one product, a panel of L (TARQ_PANEL columns wide, packed row by row) times a tile of
// errors (kTile weight rows wide, stored transposed, column by column):
//
//        i  ┌─ panel of L ─┐      ┌──── tile of E ────┐
//        ↓  │ L[i, p…p+7]  │      │ e[i, r … r+47]    │     acc[p+j, r] += L[i, p+j] · e[i, r]
//
// The sweep reads L from the left: column j needs only the errors of the columns before it.

#include "cpu/group_quantize.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed between inlined functions only

namespace tarq::TARQ_ISA {
namespace {

#define TARQ_INLINE __attribute__((always_inline)) inline

constexpr int64_t kPanel = TARQ_PANEL;
constexpr int kVectors = 3;
constexpr int64_t kFactorBlock = 192;  // its tile of 48 columns fills three quarters of a 48 KB L1
constexpr int64_t kDepth = 128;        // rows of E that stay in L1 while every panel passes over them
constexpr int64_t kOrderedSpan = 128;  // columns prepared together when there are no groups to respect
constexpr int64_t kTilesTogether = 4;  // tiles that share one pass over L
constexpr int kShrinks = 36;           // the grid of the mse rule: 1.00, 0.98 … 0.30
constexpr double kShrinkStep = 0.02;

template <typename T>
struct Simd;

template <>
struct Simd<float> {
  static constexpr int64_t kWidth = TARQ_VECTOR_BYTES / sizeof(float);
  typedef float Vector __attribute__((vector_size(TARQ_VECTOR_BYTES)));
  typedef float Loose __attribute__((vector_size(TARQ_VECTOR_BYTES), aligned(4), may_alias));
  typedef float Single __attribute__((vector_size(TARQ_VECTOR_BYTES)));
  typedef int32_t Bits __attribute__((vector_size(TARQ_VECTOR_BYTES)));
  static constexpr float kRound = 12582912.0f;  // 1.5 · 2²³: adding it drops the fraction, ties to even
};

template <>
struct Simd<double> {
  static constexpr int64_t kWidth = TARQ_VECTOR_BYTES / sizeof(double);
  typedef double Vector __attribute__((vector_size(TARQ_VECTOR_BYTES)));
  typedef double Loose __attribute__((vector_size(TARQ_VECTOR_BYTES), aligned(8), may_alias));
  typedef float Single __attribute__((vector_size(TARQ_VECTOR_BYTES / 2)));
  typedef int32_t Bits __attribute__((vector_size(TARQ_VECTOR_BYTES / 2)));
  static constexpr double kRound = 6755399441055744.0;  // 1.5 · 2⁵²
};

template <typename T>
using Vec = typename Simd<T>::Vector;
template <typename T>
constexpr int64_t kTile = kVectors * Simd<T>::kWidth;
static_assert(kTile<float> % kPanel == 0 && kTile<double> % kPanel == 0, "a tile is cut into whole panels");
static_assert(kFactorBlock % kTile<float> == 0 && kFactorBlock % kTile<double> == 0,
              "and a block into tiles");
template <typename T>
using Accumulators = Vec<T>[kPanel][kVectors];

template <typename T>
TARQ_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::Loose*>(p);
}
template <typename T>
TARQ_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename Simd<T>::Loose*>(p) = v;
}
template <typename T>
TARQ_INLINE Vec<T> splat(T x) {
  return x - Vec<T>{};
}
template <typename V>
TARQ_INLINE V lesser(V a, V b) {
  return a < b ? a : b;
}
template <typename V>
TARQ_INLINE V greater(V a, V b) {
  return a > b ? a : b;
}
TARQ_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
TARQ_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
TARQ_INLINE int64_t floor_to(int64_t a, int64_t step) { return a / step * step; }

// Round to an integer in [low, high], ties to even (as torch.round). Clamped first: it needs |x| < 2²².
template <typename T>
TARQ_INLINE Vec<T> round_within(Vec<T> x, Vec<T> low, Vec<T> high) {
  return (lesser(greater(x, low), high) + Simd<T>::kRound) - Simd<T>::kRound;
}

// --- the product ---

// acc[j][r] += Σ_k panel[k][j] · tile[k][r]
template <typename T>
TARQ_INLINE void multiply(const T* panel, const T* tile, int64_t depth, Accumulators<T>& acc) {
  constexpr int64_t width = Simd<T>::kWidth;
  for (int64_t k = 0; k < depth; ++k, panel += kPanel, tile += kTile<T>) {
    const Vec<T> e0 = load(tile), e1 = load(tile + width), e2 = load(tile + 2 * width);
#pragma GCC unroll 8
    for (int j = 0; j < kPanel; ++j) {
      const Vec<T> l = splat(panel[j]);
      acc[j][0] += l * e0;
      acc[j][1] += l * e1;
      acc[j][2] += l * e2;
    }
  }
}

template <typename T>
TARQ_INLINE void load_accumulators(const T* from, Accumulators<T>& acc) {
#pragma GCC unroll 8
  for (int j = 0; j < kPanel; ++j)
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) acc[j][v] = load(from + j * kTile<T> + v * Simd<T>::kWidth);
}

// Walk columns [begin, end) of the panel whose first column is `first`. On entry acc holds what lies before
// column `from`; errors from there on are in `tile`. For vector v of column first + j, `finish(j, v, L_jj,
// sum, place)` turns Σ_{i<j} e_i L_ij and what is at its place in the tile into the column's error, which is
// then put there and passed on to the columns behind it.
template <typename T, typename Finish>
TARQ_INLINE void walk_panel(const T* panel, T* tile, int64_t first, int64_t from, int64_t begin, int64_t end,
                            Accumulators<T>& acc, Finish finish) {
  multiply(panel + from * kPanel, tile + from * kTile<T>, begin - from, acc);
#pragma GCC unroll 8
  for (int j = 0; j < kPanel; ++j) {
    const int64_t column = first + j;
    if (column < begin || column >= end) continue;
    const T* l = panel + column * kPanel;
    T* errors = tile + column * kTile<T>;
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      const Vec<T> error = finish(j, v, l[j], acc[j][v], errors + v * Simd<T>::kWidth);
      store(errors + v * Simd<T>::kWidth, error);
#pragma GCC unroll 8
      for (int k = j + 1; k < kPanel; ++k) acc[k][v] += error * l[k];
    }
  }
}

// Transpose between a tile (one column every kTile) and rows of a matrix, `stride` apart; `index(j)` is the
// matrix column of tile column j. Sixteen columns at a time: rows of 5,120 floats all fall into the same few
// sets of the L1 cache, so a walk down one column after another would miss it every time.
template <typename T, typename Index>
TARQ_INLINE void to_tile(const T* rows, int64_t stride, int64_t row_count, int64_t columns, Index index,
                         T* tile) {
  for (int64_t start = 0; start < columns; start += 16)
    for (int64_t r = 0; r < kTile<T>; ++r)
      for (int64_t j = start; j < smaller(start + 16, columns); ++j)
        tile[j * kTile<T> + r] = r < row_count ? rows[r * stride + index(j)] : T(0);
}
template <typename T, typename Index>
TARQ_INLINE void from_tile(const T* tile, int64_t stride, int64_t columns, Index index, T* rows) {
  for (int64_t start = 0; start < columns; start += 16)
    for (int64_t r = 0; r < kTile<T>; ++r)
      for (int64_t j = start; j < smaller(start + 16, columns); ++j)
        rows[r * stride + index(j)] = tile[j * kTile<T> + r];
}

// --- H = L Lᵀ ---

template <typename T>
T dot(const T* x, const T* y, int64_t n) {
  constexpr int64_t width = Simd<T>::kWidth;
  Vec<T> sums = {};
  int64_t k = 0;
  for (; k + width <= n; k += width) sums += load(x + k) * load(y + k);
  T sum = 0;
  for (int64_t lane = 0; lane < width; ++lane) sum += sums[lane];
  for (; k < n; ++k) sum += x[k] * y[k];
  return sum;
}

template <typename T>
int64_t factor_diagonal(T* a, int64_t n, int64_t begin, int64_t end) {
  for (int64_t j = end - 1; j >= begin; --j) {
    T* row = a + j * n;
    const T pivot = row[j] - dot(row + j + 1, row + j + 1, end - j - 1);
    if (!(pivot > 0) || !(pivot - pivot == 0)) return j + 1;  // not positive, NaN, infinite
    row[j] = __builtin_sqrt(pivot);
    for (int64_t i = begin; i < j; ++i) {
      T* above = a + i * n;
      above[j] = (above[j] - dot(above + j + 1, row + j + 1, end - j - 1)) / row[j];
    }
  }
  return 0;
}

// X L_bbᵀ = A with the columns of X and A reversed is X' U = A' with U upper: the recursion of the sweep.
template <typename T>
void pack_diagonal(const T* a, int64_t n, int64_t begin, int64_t end, T* packed) {
  const int64_t size = end - begin;
  for (int64_t first = 0; first < size; first += kPanel, packed += kFactorBlock * kPanel)
    for (int64_t i = 0; i < size; ++i)
      for (int64_t j = 0; j < kPanel; ++j) {
        const int64_t column = first + j;
        packed[i * kPanel + j] =
            i <= column && column < size ? a[(end - 1 - column) * n + end - 1 - i] : T(0);
      }
}

template <typename T>
void factor_rows(T* a, int64_t n, int64_t begin, int64_t end, const T* packed, int64_t tile, T* left,
                 T* right) {
  const int64_t size = end - begin;
  T* rows = a + tile * kTile<T> * n;
  T* x = right + tile * kTile<T> * kFactorBlock;
  const auto reversed = [end](int64_t j) { return end - 1 - j; };
  to_tile(rows, n, kTile<T>, size, reversed, x);

  for (int64_t first = 0; first < size; first += kPanel, packed += kFactorBlock * kPanel) {
    Accumulators<T> acc = {};
    walk_panel<T>(packed, x, first, 0, first, smaller(first + kPanel, size), acc,
                  [](int, int, T pivot, Vec<T> sum, const T* value)
                      __attribute__((always_inline)) { return (load(value) - sum) / pivot; });
  }

  from_tile(x, n, size, reversed, rows);
  for (int64_t r = 0; r < kTile<T>; r += kPanel) {
    T* panel = left + (tile * kTile<T> + r) * kFactorBlock;
    for (int64_t k = 0; k < size; ++k)
      for (int64_t j = 0; j < kPanel; ++j) panel[k * kPanel + j] = x[k * kTile<T> + r + j];
  }
}

template <typename T>
void factor_update(T* a, int64_t n, int64_t begin, int64_t end, const T* left, const T* right, int64_t tile) {
  const int64_t first = tile * kTile<T>;
  for (int64_t row = 0; row < first + kTile<T>; row += kPanel) {
    T* out = a + row * n + first;
#pragma GCC unroll 8
    for (int j = 0; j < kPanel; ++j)
      for (int64_t r = 0; r < kTile<T>; r += 64 / sizeof(T)) __builtin_prefetch(out + j * n + r, 1);
    Accumulators<T> acc = {};
    multiply(left + row * kFactorBlock, right + first * kFactorBlock, end - begin, acc);
#pragma GCC unroll 8
    for (int j = 0; j < kPanel; ++j)
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) {
        T* at = out + j * n + v * Simd<T>::kWidth;
        store<T>(at, load(at) - acc[j][v]);
      }
  }
}

// --- packing L ---

// Panel p holds columns [p·kPanel, (p+1)·kPanel) of rows 0 … (p+1)·kPanel − 1; panels follow one another.
TARQ_INLINE int64_t panel_offset(int64_t panel) { return kPanel * kPanel * (panel * (panel + 1) / 2); }

constexpr int64_t kPanelsPerChunk = 64 / kPanel;

template <typename T>
int64_t packed_size(int64_t n) {
  return panel_offset((n + kPanel - 1) / kPanel);
}

template <typename T>
int64_t pack_chunks(int64_t n) {
  return (n + 63) / 64;
}

template <typename T>
void pack(const T* upper, int64_t n, int64_t chunk, T* packed) {
  const int64_t end = smaller((chunk + 1) * 64, floor_to(n + kPanel - 1, kPanel));
  for (int64_t i = 0; i < end; ++i)
    for (int64_t p = larger(chunk * kPanelsPerChunk, i / kPanel); p < end / kPanel; ++p) {
      T* to = packed + panel_offset(p) + i * kPanel;
      for (int64_t j = 0; j < kPanel; ++j) {
        const int64_t column = p * kPanel + j;
        to[j] = i <= column && column < n ? upper[i * n + column] : T(i == column);
      }
    }
}

// --- scales ---

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

// --- the sweep ---

// One tile's part of the workspace.
template <typename T>
struct Tile {
  T* errors;  // [columns, kTile]: weights not yet visited, then their errors
  T* ahead;   // [span, kTile]: Σ errors before the span · L, for the span's columns
  T* mean;    // [span, kTile]: the conditional mean of the group's weights
  T* trial;   // [columns of the span, kTile]: the same recursion's "errors", kept apart
  T* scales;  // [groups, kTile]
  T* zeros;   // [groups, kTile]
  double loss[kTile<T>];
};

TARQ_INLINE int64_t span_slots(int64_t columns, int64_t group_size) {
  return smaller(columns, larger(group_size, kOrderedSpan)) + 2 * kPanel;
}

template <typename T>
int64_t workspace_size(int64_t columns, int64_t group_size, int64_t tiles) {
  const int64_t groups = (columns + group_size - 1) / group_size;
  const int64_t slots = columns + kPanel + 3 * span_slots(columns, group_size) + 2 * groups;
  return smaller(tiles, kTilesTogether) * slots * kTile<T>;
}

template <typename T>
void group_scale(const Tile<T>& tile, const T* weights, int64_t group, int64_t count,
                 const Lattice& lattice) {
  for (int64_t r = 0; r < kTile<T>; r += Simd<T>::kWidth)
    choose_scale(weights + r, count, lattice, tile.scales + group * kTile<T> + r,
                 tile.zeros + group * kTile<T> + r);
}

// The group's weights where its remaining error would be least, given the errors so far: the sweep's
// recursion without rounding, w_j + Σ_{i<j} e_i L_ij / L_jj with every e_i = w_i − that.
template <typename T>
void conditional_mean(const Sweep<T>& layer, const Tile<T>& tile, int64_t begin, int64_t end) {
  const int64_t base = floor_to(begin, kPanel);
  T* trial = tile.trial - base * kTile<T>;
  for (int64_t first = base; first < end; first += kPanel) {
    Accumulators<T> acc;
    load_accumulators(tile.ahead + (first - base) * kTile<T>, acc);
    walk_panel<T>(layer.packed + panel_offset(first / kPanel), trial, first, begin, larger(first, begin),
                  smaller(first + kPanel, end), acc,
                  [](int, int, T pivot, Vec<T> sum, const T*)
                      __attribute__((always_inline)) { return -sum / pivot; });
  }
  for (int64_t j = begin; j < end; ++j)
    for (int64_t r = 0; r < kTile<T>; r += Simd<T>::kWidth)
      store<T>(tile.mean + (j - begin) * kTile<T> + r,
               load(tile.errors + j * kTile<T> + r) - load(trial + j * kTile<T> + r));
}

template <typename T>
void quantize_span(const Sweep<T>& layer, Tile<T>& tile, int64_t row, int64_t begin, int64_t end) {
  constexpr int64_t width = Simd<T>::kWidth;
  const int64_t base = floor_to(begin, kPanel);
  const int64_t rows = smaller(kTile<T>, layer.rows - row);
  const Vec<T> nought = {}, top = splat(T(layer.lattice.max_code));
  T codes[kPanel][kTile<T>];
  for (int64_t first = base; first < end; first += kPanel) {
    const int64_t from = larger(first, begin), to = smaller(first + kPanel, end);
    int64_t columns[kPanel], slots[kPanel] = {};
    for (int64_t j = from - first; j < to - first; ++j) {
      columns[j] = layer.order ? layer.order[first + j] : first + j;
      slots[j] = columns[j] / layer.group_size * kTile<T>;
    }
    Accumulators<T> acc;
    Vec<T> lost[kVectors] = {};
    load_accumulators(tile.ahead + (first - base) * kTile<T>, acc);
    walk_panel<T>(layer.packed + panel_offset(first / kPanel), tile.errors, first, begin, from, to, acc,
                  [&](int j, int v, T pivot, Vec<T> sum, const T* value) __attribute__((always_inline)) {
                    const Vec<T> w = load(value);
                    const Vec<T> scale = load(tile.scales + slots[j] + v * width);
                    const Vec<T> zero = load(tile.zeros + slots[j] + v * width);
                    const Vec<T> level =
                        round_within<T>((w + sum / pivot) / scale, nought - zero, top - zero);
                    const Vec<T> error = w - level * scale;
                    const Vec<T> residual = error * pivot + sum;
                    lost[v] += residual * residual;
                    store<T>(codes[j] + v * width, level + zero);
                    return error;
                  });
    for (int v = 0; v < kVectors; ++v)
      for (int64_t lane = 0; lane < width; ++lane) tile.loss[v * width + lane] += lost[v][lane];
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = from - first; j < to - first; ++j)
        layer.codes[(row + r) * layer.columns + columns[j]] = static_cast<uint8_t>(codes[j][r]);
  }
}

template <typename T>
void sweep_together(const Sweep<T>& layer, int64_t first_tile, int64_t count, T* workspace) {
  const int64_t n = layer.columns, groups = (n + layer.group_size - 1) / layer.group_size;
  const int64_t slots = span_slots(n, layer.group_size) * kTile<T>;
  Tile<T> tiles[kTilesTogether];
  for (int64_t t = 0; t < count; ++t) {
    Tile<T>& tile = tiles[t];
    const int64_t row = (first_tile + t) * kTile<T>, rows = smaller(kTile<T>, layer.rows - row);
    tile.errors = workspace;
    tile.ahead = tile.errors + (n + kPanel) * kTile<T>;
    tile.mean = tile.ahead + slots;
    tile.trial = tile.mean + slots;
    tile.scales = tile.trial + slots;
    tile.zeros = tile.scales + groups * kTile<T>;
    workspace = tile.zeros + groups * kTile<T>;
    for (double& loss : tile.loss) loss = 0;
    const T* weights = layer.weight + row * n;
    if (layer.order)
      to_tile(weights, n, rows, n, [&](int64_t j) { return layer.order[j]; }, tile.errors);
    else
      to_tile(weights, n, rows, n, [](int64_t j) { return j; }, tile.errors);
    // Static order: every scale comes from the original weights of its natural group.
    for (int64_t group = 0; layer.order && group < groups; ++group) {
      const int64_t begin = group * layer.group_size, size = smaller(layer.group_size, n - begin);
      for (int64_t j = 0; j < size; ++j)
        for (int64_t r = 0; r < kTile<T>; r += Simd<T>::kWidth)
          store<T>(tile.mean + j * kTile<T> + r,
                   load(tile.errors + layer.position[begin + j] * kTile<T> + r));
      group_scale(tile, tile.mean, group, size, layer.lattice);
    }
  }

  const int64_t span = layer.order ? kOrderedSpan : layer.group_size;
  for (int64_t begin = 0; begin < n; begin += span) {
    const int64_t end = smaller(begin + span, n), base = floor_to(begin, kPanel);
    for (int64_t t = 0; t < count; ++t)
      for (int64_t i = 0; i < (floor_to(end + kPanel - 1, kPanel) - base) * kTile<T>; ++i)
        tiles[t].ahead[i] = 0;
    for (int64_t k = 0; k < begin; k += kDepth)
      for (int64_t t = 0; t < count; ++t)
        for (int64_t first = base; first < end; first += kPanel) {
          T* ahead = tiles[t].ahead + (first - base) * kTile<T>;
          Accumulators<T> acc;
          load_accumulators(ahead, acc);
          multiply(layer.packed + panel_offset(first / kPanel) + k * kPanel, tiles[t].errors + k * kTile<T>,
                   smaller(kDepth, begin - k), acc);
#pragma GCC unroll 8
          for (int j = 0; j < kPanel; ++j)
#pragma GCC unroll 3
            for (int v = 0; v < kVectors; ++v)
              store<T>(ahead + j * kTile<T> + v * Simd<T>::kWidth, acc[j][v]);
        }
    for (int64_t t = 0; t < count; ++t) {
      if (!layer.order) {
        conditional_mean(layer, tiles[t], begin, end);
        group_scale(tiles[t], tiles[t].mean, begin / span, end - begin, layer.lattice);
      }
      quantize_span(layer, tiles[t], (first_tile + t) * kTile<T>, begin, end);
    }
  }

  for (int64_t t = 0; t < count; ++t) {
    const int64_t row = (first_tile + t) * kTile<T>, rows = smaller(kTile<T>, layer.rows - row);
    for (int64_t r = 0; r < rows; ++r) {
      layer.loss[row + r] = tiles[t].loss[r];
      for (int64_t group = 0; group < groups; ++group) {
        layer.scales[(row + r) * groups + group] = tiles[t].scales[group * kTile<T> + r];
        layer.zeros[(row + r) * groups + group] = static_cast<uint8_t>(tiles[t].zeros[group * kTile<T> + r]);
      }
    }
  }
}

template <typename T>
void sweep(const Sweep<T>& layer, int64_t begin, int64_t end, T* workspace) {
  for (int64_t tile = begin; tile < end; tile += kTilesTogether)
    sweep_together(layer, tile, smaller(kTilesTogether, end - tile), workspace);
}

template <typename T>
constexpr GroupQuantizeKernels<T> kKernels = {
    kTile<T>,        kFactorBlock,       &factor_diagonal<T>, &pack_diagonal<T>,
    &factor_rows<T>, &factor_update<T>,  &packed_size<T>,     &pack_chunks<T>,
    &pack<T>,        &workspace_size<T>, &sweep<T>,
};

}  // namespace

const GroupQuantizeKernels<float>& single() { return kKernels<float>; }
const GroupQuantizeKernels<double>& full() { return kKernels<double>; }

}  // namespace tarq::TARQ_ISA
