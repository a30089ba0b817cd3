// group_quantize on CUDA: a warp per weight row, four columns per lane, the span's block of L in shared
// memory.
//
//   lane 0          lane 1          …   lane 31
//   columns 0 32 64 96   1 33 65 97       31 63 95 127        (a read of one row of L has no bank conflict)
//
// Column after column, the lane that owns it rounds and hands the error to the warp, and every lane adds it
// to the sums of its own later columns. Divisions are written out: fast-math would approximate them, and a
// scale or a code that differs in its last bit is a different checkpoint.
#include "cuda/group_quantize.h"

namespace tarq::cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kOwned = kSpan / kLanes;
constexpr int kWarps = 8;  // rows per thread block
constexpr unsigned kAll = 0xffffffffu;
constexpr int kShrinks = 36;  // the grid of the mse rule: 1.00, 0.98 … 0.30
constexpr double kShrinkStep = 0.02;

template <typename Combine>
__device__ float reduce(float x, Combine combine) {
  for (int step = kLanes / 2; step > 0; step /= 2) x = combine(x, __shfl_xor_sync(kAll, x, step));
  return x;
}

__device__ float round_within(float x, float low, float high) { return rintf(fminf(fmaxf(x, low), high)); }

// A scale as its stored dtype will hold it: once it is a normal number, only the mantissa is to be rounded.
__device__ float stored(float scale, const Lattice& lattice) {
  scale =
      fminf(fmaxf(scale, static_cast<float>(lattice.least_scale)), static_cast<float>(lattice.largest_scale));
  const int drop = lattice.dropped_bits;
  if (drop == 0) return scale;
  int bits = __float_as_int(scale);
  bits += ((bits >> drop) & 1) + ((1 << (drop - 1)) - 1);
  return __int_as_float(bits & -(1 << drop));
}

// Scale and zero point of a row's group. `each(f)` calls f with every weight that this lane holds.
template <typename Each>
__device__ void choose_scale(const Each& each, const Lattice& lattice, float& scale, float& zero) {
  const float codes = lattice.max_code;
  float low = INFINITY, high = -INFINITY;
  each([&](float w) {
    low = fminf(low, w);
    high = fmaxf(high, w);
  });
  low = reduce(low, [](float a, float b) { return fminf(a, b); });
  high = reduce(high, [](float a, float b) { return fmaxf(a, b); });
  const float magnitude = fmaxf(-low, high);
  float base;
  zero = lattice.symmetric_zero;
  if (lattice.symmetric) {
    base = __fdiv_rn(magnitude, codes / 2);
    if (lattice.rule == ScaleRule::kMinmax && high > low) base = __fdiv_rn(high - low, codes);
  } else {
    low = fminf(low, 0.0f);
    base = __fdiv_rn(fmaxf(high, 0.0f) - low, codes);
  }
  scale = stored(base, lattice);
  if (!lattice.symmetric) zero = round_within(__fdiv_rn(-low, scale), 0.0f, codes);

  if (lattice.rule == ScaleRule::kMse) {
    float least = INFINITY;
    const float first_zero = zero;
    for (int k = 0; k < kShrinks; ++k) {
      const float shrink = static_cast<float>(1.0 - kShrinkStep * k);
      const float tried = stored(base * shrink, lattice), inverse = __frcp_rn(tried);
      const float shift =
          lattice.symmetric ? first_zero : round_within(__fdiv_rn(-low * shrink, tried), 0.0f, codes);
      float error = 0;
      each([&](float w) {
        const float missed = w - round_within(w * inverse, -shift, codes - shift) * tried;
        error += missed * missed;
      });
      error = reduce(error, [](float a, float b) { return a + b; });
      if (error < least) {
        least = error;
        scale = tried;
        zero = shift;
      }
    }
  }
  if (magnitude == 0) scale = 1;
}

__global__ void choose_scales_kernel(const Span span, const GroupWeights from, int64_t group) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y, layer = blockIdx.y;
  if (row >= span.rows) return;
  const float* gl_row = from.weights + layer * from.layer_stride + row * from.row_stride;
  float scale, zero;
  choose_scale(
      [&](auto&& use) {
        for (int64_t j = threadIdx.x; j < from.count; j += kLanes) use(gl_row[j]);
      },
      span.lattice, scale, zero);
  if (threadIdx.x == 0) {
    const int64_t at = (layer * span.rows + row) * span.groups + group;
    span.scales[at] = scale;
    span.zeros[at] = static_cast<uint8_t>(zero);
  }
}

// Walk the span's columns in order. `finish(t, column, pivot, sum)`, run by every lane with its own sum of
// slot t, makes the error of that lane's column; the owner's is the one that counts.
template <typename Finish>
__device__ void walk(const float* sh_upper, int width, float (&sums)[kOwned], float (&errors)[kOwned],
                     const Finish& finish) {
  const int lane = threadIdx.x;
#pragma unroll
  for (int t = 0; t < kOwned; ++t) {
    for (int owner = 0; owner < kLanes; ++owner) {
      const int column = t * kLanes + owner;
      if (column >= width) return;
      const float* sh_row = sh_upper + column * kSpan;
      const float error = __shfl_sync(kAll, finish(t, column, sh_row[column], sums[t]), owner);
      if (lane == owner) errors[t] = error;
#pragma unroll
      for (int later = t; later < kOwned; ++later) {  // L is 0 left of its diagonal
        // A column's own sum must stay as it is for its residual, and those before it add nothing.
        if (later * kLanes + lane > column) sums[later] += error * sh_row[later * kLanes + lane];
      }
    }
  }
}

__global__ void __launch_bounds__(kWarps* kLanes) quantize_span_kernel(const Span span) {
  extern __shared__ float sh_upper[];  // [width, kSpan]
  const int lane = threadIdx.x, width = static_cast<int>(span.width);
  const int64_t layer = blockIdx.y;
  const float* gl_upper = span.upper + (layer * span.columns + span.begin) * span.columns + span.begin;
  const int* gl_group_of = span.group_of + layer * span.columns + span.begin;
  for (int i = threadIdx.y * kLanes + lane; i < width * kSpan; i += kWarps * kLanes) {
    const int k = i / kSpan, j = i % kSpan;
    sh_upper[i] = j < width ? gl_upper[k * span.columns + j] : 0.0f;
  }
  __syncthreads();
  int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y;
  if (row >= span.rows) return;  // a whole warp leaves, after the only barrier
  row += layer * span.rows;

  float weights[kOwned], before[kOwned], sums[kOwned], errors[kOwned] = {};
#pragma unroll
  for (int t = 0; t < kOwned; ++t) {
    const int column = t * kLanes + lane;
    const bool mine = column < width;
    weights[t] = mine ? span.weight[row * span.columns + span.begin + column] : 0.0f;
    before[t] = mine && span.feedback ? span.feedback[row * span.width + column] : 0.0f;
    sums[t] = before[t];
  }

  float scales[kOwned], zeros[kOwned];
  if (span.choose_scale) {
    // The group's weights where its remaining error would be least: the recursion without rounding.
    walk(sh_upper, width, sums, errors,
         [](int, int, float pivot, float sum) { return __fdiv_rn(-sum, pivot); });
    float scale, zero;
    choose_scale(
        [&](auto&& use) {
#pragma unroll
          for (int t = 0; t < kOwned; ++t)
            if (t * kLanes + lane < width) use(weights[t] - errors[t]);
        },
        span.lattice, scale, zero);
#pragma unroll
    for (int t = 0; t < kOwned; ++t) {
      scales[t] = scale;
      zeros[t] = zero;
      sums[t] = before[t];
    }
    if (lane == 0) {
      const int64_t at = row * span.groups + gl_group_of[0];
      span.scales[at] = scale;
      span.zeros[at] = static_cast<uint8_t>(zero);
    }
  } else {
#pragma unroll
    for (int t = 0; t < kOwned; ++t) {
      const int column = t * kLanes + lane;
      const int64_t at = row * span.groups + gl_group_of[column < width ? column : 0];
      scales[t] = span.scales[at];
      zeros[t] = span.zeros[at];
    }
  }

  const float top = span.lattice.max_code;
  const auto level = [&](int t, float pivot, float sum) {
    return round_within(__fdiv_rn(weights[t] + __fdiv_rn(sum, pivot), scales[t]), -zeros[t], top - zeros[t]);
  };
  walk(sh_upper, width, sums, errors,
       [&](int t, int, float pivot, float sum) { return weights[t] - level(t, pivot, sum) * scales[t]; });

  float lost = 0;
#pragma unroll
  for (int t = 0; t < kOwned; ++t) {
    const int column = t * kLanes + lane;
    if (column >= width) continue;
    const int64_t at = row * span.columns + span.begin + column;
    const float pivot = sh_upper[column * kSpan + column];
    const float residual = errors[t] * pivot + sums[t];
    lost += residual * residual;
    span.codes[at] = static_cast<uint8_t>(level(t, pivot, sums[t]) + zeros[t]);
    span.errors[at] = errors[t];
  }
  lost = reduce(lost, [](float a, float b) { return a + b; });
  if (lane == 0) span.loss[row] += lost;
}

dim3 blocks(const Span& span) {
  return dim3(static_cast<unsigned>((span.rows + kWarps - 1) / kWarps), static_cast<unsigned>(span.layers));
}

}  // namespace

cudaError_t choose_scales(const Span& span, const GroupWeights& from, int64_t group, cudaStream_t stream) {
  choose_scales_kernel<<<blocks(span), dim3(kLanes, kWarps), 0, stream>>>(span, from, group);
  return cudaGetLastError();
}

cudaError_t quantize_span(const Span& span, cudaStream_t stream) {
  const int bytes = static_cast<int>(span.width * kSpan * sizeof(float));  // 64 KB at most: sm_86 has 99
  const cudaError_t allowed =
      cudaFuncSetAttribute(quantize_span_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           kSpan * kSpan * static_cast<int>(sizeof(float)));
  if (allowed != cudaSuccess) return allowed;
  quantize_span_kernel<<<blocks(span), dim3(kLanes, kWarps), bytes, stream>>>(span);
  return cudaGetLastError();
}

}  // namespace tarq::cuda
