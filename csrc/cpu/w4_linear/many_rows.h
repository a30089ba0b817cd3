// Many activation rows: weights are decoded once for all of them. Over a description `S` of an instruction
// set, see engine.h.
//
// A vector holds `lanes` outputs, so nothing is summed across lanes. `kVectors` of them by S::height rows of
// activations are a register tile; its operands are stored in the order in which they are read:
//
//        weights   [S::depth inputs][kVectors · lanes outputs]   decoded, in L1 while all rows pass over them
//        inputs    [rows / S::height][inputs][S::height]         packed once per call, a value to broadcast
//        each
//
// Sums go to memory between two passes of S::depth inputs.
#pragma once

#include "cpu/w4_linear/layout.h"

namespace tarq {
namespace {

constexpr int kVectors = 3;
constexpr int64_t kRowBlock = 256;  // rows whose sums a thread holds

template <class S>
constexpr int64_t kPanel = kVectors * S::lanes;

// ---- activations

template <class S>
int64_t row_panels(int64_t rows) {
  return ceil_div(rows, S::height);
}

/// First row of a panel: heights are equal to within one row.
template <class S>
int64_t panel_row(int64_t rows, int64_t panel) {
  return rows * panel / row_panels<S>(rows);
}

inline int64_t padded_to_words(int64_t in_features) { return round_up(in_features, 8); }

template <class S>
int64_t many_input_bytes(int64_t rows, int64_t in_features) {
  return row_panels<S>(rows) * S::height * padded_to_words(in_features) * int64_t(sizeof(float));
}

/// Panels [begin, end) of x [rows, in_features] (contiguous) to `out` [panels, inputs in whole words,
/// height].
template <class S>
void pack_panels(const void* x, Float x_type, int64_t rows, int64_t in_features, int64_t begin, int64_t end,
                 void* out) {
  const int64_t padded = padded_to_words(in_features), whole = in_features / 8 * 8;
  for (int64_t p = begin; p < end; ++p) {
    const int64_t first = panel_row<S>(rows, p), height = panel_row<S>(rows, p + 1) - first;
    float* to = static_cast<float*>(out) + p * padded * S::height;
    for (int64_t k = 0; k < whole; k += 8, to += 8 * S::height)
      S::pack_columns(x, x_type, first * in_features + k, in_features, height, to);
    for (int64_t k = whole; k < padded; ++k, to += S::height)
      for (int64_t r = 0; r < S::height; ++r)
        to[r] = k < in_features && r < height ? read(x, x_type, (first + r) * in_features + k) : 0.0f;
  }
}

// ---- weights

/// The decoded weights, scales, zero points and sums of one thread.
template <class S>
struct Panel {
  float *weights, *sums;  // [depth, kPanel], [kRowBlock, kPanel]
  float *scales, *zeros;  // [groups, kPanel], like the following
  float *row, *bias;      // [groups]; [kPanel]

  static int64_t floats(const W4Layer& layer) {
    return (S::depth + kRowBlock + 2 * layer.groups + 1) * kPanel<S> + layer.groups + S::lanes;
  }
  Panel(void* scratch, const W4Layer& layer) {
    weights = static_cast<float*>(scratch);
    sums = weights + S::depth * kPanel<S>;
    scales = sums + kRowBlock * kPanel<S>;
    zeros = scales + layer.groups * kPanel<S>;
    bias = zeros + layer.groups * kPanel<S>;
    row = bias + kPanel<S>;
  }

  /// Scales, zero points and bias of outputs [first, first + kPanel).
  void read_outputs(const W4Layer& layer, int64_t first) {
    for (int64_t r = 0; r < kPanel<S>; ++r) {
      const int64_t n = clamp_row(layer, first + r);
      bias[r] = layer.bias ? read(layer.bias, layer.bias_type, n) : 0.0f;
      S::to_float(layer.scales, layer.scale_type, n * layer.groups, layer.groups, row);
      for (int64_t g = 0; g < layer.groups; ++g) scales[g * kPanel<S> + r] = row[g];
      if (!layer.zeros) continue;
      const uint32_t* const words = layer.zeros + n / 8 * layer.groups;
      const int shift = 4 * (n % 8);
      for (int64_t g = 0; g < layer.groups; ++g) zeros[g * kPanel<S> + r] = float(words[g] >> shift & 15);
    }
  }

  /// Weights of inputs [begin, end) of outputs [first, first + vectors · lanes); begin is a multiple of
  /// 8 · lanes.
  void decode(const W4Layer& layer, int64_t first, int vectors, int64_t begin, int64_t end) {
    if (layer.groups > 1 && layer.group_size % 8) return decode_any(layer, first, vectors, begin, end);
    for (int v = 0; v < vectors; ++v)
      if (layer.zeros)
        decode_words<false>(layer, first, v, begin, end);
      else
        decode_words<true>(layer, first, v, begin, end);
  }

 private:
  template <bool symmetric>
  void decode_words(const W4Layer& layer, int64_t first, int v, int64_t begin, int64_t end) {
    const int64_t row_words = ceil_div(layer.in_features, 8);
    const uint32_t* rows[S::lanes];
    for (int i = 0; i < S::lanes; ++i)
      rows[i] = layer.codes + clamp_row(layer, first + v * S::lanes + i) * row_words;
    const int64_t group_words = layer.groups == 1 ? row_words : layer.group_size / 8;
    int64_t w = begin / 8, group = w / group_words, left = (group + 1) * group_words - w;
    float* to = weights + v * S::lanes;
    for (; w < ceil_div(end, 8); w += S::lanes) {
      typename S::Words words[S::lanes];
      const int64_t there = row_words - w < S::lanes ? row_words - w : S::lanes;
      S::load_columns(rows, w, there, words);
      for (int64_t i = 0; i < there; ++i, to += 8 * kPanel<S>) {
        const auto scale = S::load_sums(scales + group * kPanel<S> + v * S::lanes);
        const auto zero = S::load_sums(zeros + group * kPanel<S> + v * S::lanes);
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) {
          auto weight = S::template word_codes<symmetric>(words[i], j);
          if constexpr (!symmetric) weight = S::subtract(weight, zero);
          S::store_sums(to + j * kPanel<S>, S::multiply(weight, scale));
        }
        if (--left == 0) ++group, left = group_words;
      }
    }
  }

  /// Any group size: one code at a time.
  void decode_any(const W4Layer& layer, int64_t first, int vectors, int64_t begin, int64_t end) {
    for (int64_t r = 0; r < vectors * S::lanes; ++r)
      for (int64_t k = begin; k < end; ++k)
        weights[(k - begin) * kPanel<S> + r] =
            k < layer.in_features ? weight_at(layer, clamp_row(layer, first + r), k) : 0.0f;
  }
};

// ---- products

/// rows × vectors of sums [.., kPanel], over `depth` inputs.
template <class S, int rows, int vectors>
void register_tile(const float* x, const float* weights, int64_t depth, bool fresh, float* to) {
  using Sum = typename S::Sum;
  Sum sums[rows][vectors];
#pragma GCC unroll 8
  for (int m = 0; m < rows; ++m)
#pragma GCC unroll 3
    for (int v = 0; v < vectors; ++v)
      sums[m][v] = fresh ? S::zero() : S::load_sums(to + m * kPanel<S> + v * S::lanes);
  for (int64_t k = 0; k < depth; ++k, x += S::height, weights += kPanel<S>) {
    Sum weight[vectors];
#pragma GCC unroll 3
    for (int v = 0; v < vectors; ++v) weight[v] = S::load_sums(weights + v * S::lanes);
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) {
      const Sum input = S::template spread<1>(x + m);
#pragma GCC unroll 3
      for (int v = 0; v < vectors; ++v) sums[m][v] = S::multiply_add(sums[m][v], weight[v], input);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < rows; ++m)
#pragma GCC unroll 3
    for (int v = 0; v < vectors; ++v) S::store_sums(to + m * kPanel<S> + v * S::lanes, sums[m][v]);
}

template <class S, int vectors = kVectors, int rows = S::height>
void add_products(int64_t height, int width, const float* x, const float* weights, int64_t depth, bool fresh,
                  float* to) {
  if constexpr (vectors > 1)
    if (width < vectors) return add_products<S, vectors - 1>(height, width, x, weights, depth, fresh, to);
  if constexpr (rows > 1)
    if (height < rows) return add_products<S, vectors, rows - 1>(height, width, x, weights, depth, fresh, to);
  register_tile<S, rows, vectors>(x, weights, depth, fresh, to);
}

/// Add the bias, round, store outputs [first, first + count) of one row.
template <class S>
void write_outputs(const W4Layer& layer, const W4Product& product, int64_t m, int64_t first, int64_t count,
                   const Panel<S>& panel, const float* sums) {
  const int64_t at = m * layer.out_features + first;
  int64_t i = 0;
  for (; i + S::lanes <= count; i += S::lanes)
    S::write_sums(product.y, product.y_type, at + i,
                  S::add(S::load_sums(sums + i), S::load_sums(panel.bias + i)));
  for (; i < count; ++i) write(product.y, product.y_type, at + i, sums[i] + panel.bias[i]);
}

template <class S>
int64_t many_scratch_bytes(const W4Layer& layer) {
  return Panel<S>::floats(layer) * int64_t(sizeof(float));
}

/// Output features [begin, end) of the product of inputs packed by `pack_panels`.
template <class S>
void multiply_many(const W4Layer& layer, const W4Product& product, int64_t begin, int64_t end,
                   void* scratch) {
  const float* const x = static_cast<const float*>(product.x);
  const int64_t padded = padded_to_words(layer.in_features), panels = row_panels<S>(product.rows);
  constexpr int64_t step = kRowBlock / S::height;
  Panel<S> panel(scratch, layer);
  for (int64_t p0 = 0; p0 < panels; p0 += step) {
    const int64_t p1 = p0 + step < panels ? p0 + step : panels;
    const int64_t m0 = panel_row<S>(product.rows, p0), m1 = panel_row<S>(product.rows, p1);
    for (int64_t n = begin; n < end; n += kPanel<S>) {
      const int64_t count = end - n < kPanel<S> ? end - n : kPanel<S>;
      const int vectors = int(ceil_div(count, S::lanes));
      panel.read_outputs(layer, n);
      for (int64_t k = 0; k < padded; k += S::depth) {
        const int64_t depth = padded - k < S::depth ? padded - k : S::depth;
        panel.decode(layer, n, vectors, k, k + depth);
        for (int64_t p = p0; p < p1; ++p) {
          const int64_t m = panel_row<S>(product.rows, p), height = panel_row<S>(product.rows, p + 1) - m;
          add_products<S>(height, vectors, x + (p * padded + k) * S::height, panel.weights, depth, k == 0,
                          panel.sums + (m - m0) * kPanel<S>);
        }
      }
      for (int64_t m = m0; m < m1; ++m)
        write_outputs(layer, product, m, n, count, panel, panel.sums + (m - m0) * kPanel<S>);
    }
  }
}

/// Outputs [begin, end) of the weights' transpose in bf16: out [in_features, stride], from column `begin` on.
template <class S>
void decode_bf16(const W4Layer& layer, uint16_t* out, int64_t stride, int64_t begin, int64_t end,
                 void* scratch) {
  Panel<S> panel(scratch, layer);
  for (int64_t n = begin; n < end; n += kPanel<S>) {
    const int64_t count = end - n < kPanel<S> ? end - n : kPanel<S>;
    panel.read_outputs(layer, n);
    for (int64_t k = 0; k < layer.in_features; k += S::depth) {
      const int64_t depth = layer.in_features - k < S::depth ? layer.in_features - k : S::depth;
      panel.decode(layer, n, int(ceil_div(count, S::lanes)), k, k + depth);
      for (int64_t i = 0; i < depth; ++i) {
        const float* const from = panel.weights + i * kPanel<S>;
        const int64_t at = (k + i) * stride + n;
        int64_t c = 0;
        for (; c + S::lanes <= count; c += S::lanes)
          S::write_sums(out, Float::bf16, at + c, S::load_sums(from + c));
        for (; c < count; ++c) out[at + c] = float_to_bf16(from[c]);
      }
    }
  }
}

}  // namespace
}  // namespace tarq
