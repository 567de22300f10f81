// The noisy top-k gate: one warp a row. Gradients to the columns are sums over spans of rows, one
// thread a few of them, joined in order.
#pragma once

#include "lowrank/cuda/threads.cuh"
#include "lowrank/gating.h"
#include "lowrank/kernels.h"

namespace pyext::lowrank::cuda {

template <class S>
__global__ void __launch_bounds__(kThreads) noisy_gate_kernel(NoisyGateArgs<S> args) {
  __shared__ float all[kWarps][2 * kMaxRank];
  const int64_t n = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32, E = args.experts;
  if (n >= args.rows) return;
  const int64_t columns = args.eps ? 2 * E : E, D = args.width;
  const int lane = int(threadIdx.x) & 31;
  float* products = all[threadIdx.x / 32];
  const S* x = args.x + n * D;
  for (int64_t first = 0; first < columns; first += kTogether) {
    float sums[kTogether] = {};
    for (int64_t c = lane; c < D; c += 32) {
      const float value = widen(x[c]);
      PYEXT_UNROLL
      for (int j = 0; j < kTogether; ++j)
        if (first + j < columns) sums[j] = fmaf(value, args.w[(first + j) * D + c], sums[j]);
    }
    const float sum = warp_sum_each(sums);
    const int j = sum_lane(lane);
    if (j < kTogether && first + j < columns) products[first + j] = sum;
  }
  __syncwarp();
  for (int64_t e = lane; e < E; e += 32) {
    if (args.eps) {
      const float deviation = products[E + e];
      args.deviations[n * E + e] = deviation;
      products[e] += args.eps[n * E + e] * (softplus(deviation) + float(args.floor));
    }
    args.logits[n * E + e] = products[e];
  }
  __syncwarp();
  bool first = true;
  float most = 0.0f;
  for (int64_t e = 0; e < E; ++e) {
    if (!is_kept(products, E, args.topk, e)) continue;
    most = first || products[e] > most ? products[e] : most;
    first = false;
  }
  float* powers = products + E;  // the deviations are done with
  for (int64_t e = lane; e < E; e += 32)
    powers[e] = is_kept(products, E, args.topk, e) ? vexp(products[e] - most) : 0.0f;
  __syncwarp();
  float sum = 0.0f;
  for (int64_t e = 0; e < E; ++e) sum += powers[e];
  for (int64_t e = lane; e < E; e += 32) args.gate[n * E + e] = powers[e] / sum;
}

template <class S>
void noisy_gate(const NoisyGateArgs<S>& args, const Context& context) {
  if constexpr (sizeof(S) < 8)
    PYEXT_LAUNCH(noisy_gate_kernel<S>, blocks_for(args.rows, kWarps), kThreads,
                 cudaStream_t(context.stream), args);
}

// The gradients to a row's products with the columns, [N, columns].
template <class S>
__global__ void __launch_bounds__(kThreads)
    gate_products_kernel(NoisyGateBackwardArgs<S> args, int64_t columns, float* products) {
  const NoisyGateArgs<S>& f = args.forward;
  const int64_t n = int64_t(blockIdx.x) * kThreads + threadIdx.x, E = f.experts;
  if (n >= f.rows) return;
  const float *gate = f.gate + n * E, *g = args.g_gate + n * E;
  float mean = 0.0f;
  for (int64_t e = 0; e < E; ++e) mean += gate[e] * g[e];
  for (int64_t e = 0; e < E; ++e) {
    const float own = gate[e] * (g[e] - mean) + args.g_logits[n * E + e];
    products[n * columns + e] = own;
    if (f.eps)
      products[n * columns + E + e] =
          own * f.eps[n * E + e] * softplus_slope(f.deviations[n * E + e]);
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    gate_x_kernel(NoisyGateBackwardArgs<S> args, int64_t columns, const float* products) {
  const NoisyGateArgs<S>& f = args.forward;
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= f.rows * f.width) return;
  const float* own = products + at / f.width * columns;
  float sum = 0.0f;
  for (int64_t m = 0; m < columns; ++m) sum = fmaf(own[m], f.w[m * f.width + at % f.width], sum);
  args.g_x[at] = narrow<S>(sum);
}

// Sums [spans, columns, D]; blocks are numbered by span, tile of columns of w, and place in a row.
struct GateSums {
  int64_t columns, spans, span, tiles, blocks;
  const float* products;
  float* sums;
};

template <class S>
__global__ void __launch_bounds__(kThreads) gate_spans_kernel(NoisyGateArgs<S> args, GateSums to) {
  const int64_t D = args.width, c = blockIdx.x % to.blocks * kThreads + threadIdx.x;
  const int64_t first = blockIdx.x / to.blocks % to.tiles * kTogether;
  const int64_t s = blockIdx.x / to.blocks / to.tiles;
  if (c >= D) return;
  const int64_t end = (s + 1) * to.span < args.rows ? (s + 1) * to.span : args.rows;
  float sums[kTogether] = {};
  for (int64_t n = s * to.span; n < end; ++n) {
    const float value = widen(args.x[n * D + c]);
    PYEXT_UNROLL
    for (int j = 0; j < kTogether; ++j)
      if (first + j < to.columns)
        sums[j] = fmaf(value, to.products[n * to.columns + first + j], sums[j]);
  }
  PYEXT_UNROLL
  for (int j = 0; j < kTogether; ++j)
    if (first + j < to.columns) to.sums[(s * to.columns + first + j) * D + c] = sums[j];
}

static __global__ void __launch_bounds__(kThreads)
    gate_join_kernel(const float* sums, int64_t spans, int64_t values, float* out) {
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= values) return;
  float total = 0.0f;
  for (int64_t s = 0; s < spans; ++s) total += sums[s * values + at];
  out[at] = total;
}

template <class S>
void noisy_gate_backward(const NoisyGateBackwardArgs<S>& args, const Context& context) {
  if constexpr (sizeof(S) < 8) {
    const NoisyGateArgs<S>& f = args.forward;
    const auto stream = cudaStream_t(context.stream);
    const auto scratch = [&](int64_t count) {
      return static_cast<float*>(context.scratch(context.owner, count * int64_t(sizeof(float))));
    };
    const int64_t columns = f.eps ? 2 * f.experts : f.experts, values = columns * f.width;
    float* products = scratch(f.rows * columns);
    PYEXT_LAUNCH(gate_products_kernel<S>, blocks_for(f.rows, kThreads), kThreads, stream, args,
                 columns, products);
    if (args.g_x)
      PYEXT_LAUNCH(gate_x_kernel<S>, blocks_for(f.rows * f.width, kThreads), kThreads, stream, args,
                   columns, products);
    if (!args.g_w) return;
    const int64_t span = (f.rows + 63) / 64, spans = (f.rows + span - 1) / span;
    const GateSums to{columns,
                      spans,
                      span,
                      blocks_for(columns, kTogether),
                      blocks_for(f.width, kThreads),
                      products,
                      scratch(spans * values)};
    PYEXT_LAUNCH(gate_spans_kernel<S>, unsigned(spans * to.tiles * to.blocks), kThreads, stream, f,
                 to);
    PYEXT_LAUNCH(gate_join_kernel, blocks_for(values, kThreads), kThreads, stream, to.sums, spans,
                 values, args.g_w);
  }
}

}  // namespace pyext::lowrank::cuda
