// What attention with ReLU scores does between its matrix products.
#pragma once

#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"
#include "side/kernels.h"

namespace pyext::side::cuda {

constexpr int kAttendThreads = 256;
constexpr int kAttendWarps = kAttendThreads / 32;

// One thread an element.
template <class S>
__global__ void __launch_bounds__(kAttendThreads) features_kernel(FeaturesArgs<S> args) {
  const int64_t at = int64_t(blockIdx.x) * kAttendThreads + threadIdx.x, d = args.channels;
  if (at >= args.samples * args.taps * args.tokens * d) return;
  const int64_t i = at % d, token = at / d % args.tokens;
  const int64_t tap = at / (d * args.tokens) % args.taps,
                sample = at / (d * args.tokens * args.taps);
  float f = widen(args.h[args.at(sample, tap, token) + i]);
  if (args.a) f *= args.a[tap * d + i];
  if (args.c) f += args.c[tap * d + i];
  args.features[at] = narrow<Product<S>>(f);
}

template <class S>
void features(const FeaturesArgs<S>& args, const Context& context) {
  const int64_t all = args.samples * args.taps * args.tokens * args.channels;
  PYEXT_LAUNCH(features_kernel<S>, blocks_for(all, kAttendThreads), kAttendThreads,
               cudaStream_t(context.stream), args);
}

// One block 32 channels of a sample's tap: a warp takes every eighth token, and their sums are
// added in the order of the warps.
template <class S>
__global__ void __launch_bounds__(kAttendThreads)
    features_backward_kernel(FeaturesBackwardArgs<S> args, int64_t blocks) {
  __shared__ float sums[2][kAttendWarps][32];
  const FeaturesArgs<S>& f = args.forward;
  const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) >> 5;
  const int64_t d = f.channels, i = int64_t(blockIdx.x) % blocks * 32 + lane;
  const int64_t tap = blockIdx.x / blocks % f.taps, sample = blockIdx.x / blocks / f.taps;
  float g_a = 0.0f, g_c = 0.0f;
  if (i < d) {
    const float a = f.a ? f.a[tap * d + i] : 1.0f;
    for (int64_t token = warp; token < f.tokens; token += kAttendWarps) {
      const float g = widen(args.g_features[((sample * f.taps + tap) * f.tokens + token) * d + i]);
      g_a += g * widen(f.h[f.at(sample, tap, token) + i]);
      g_c += g;
      args.g_h[args.gradient_at(sample, tap, token) + i] = narrow<S>(g * a);
    }
  }
  sums[0][warp][lane] = g_a;
  sums[1][warp][lane] = g_c;
  __syncthreads();
  float* out = warp == 0 ? args.g_a : args.g_c;
  if (warp > 1 || i >= d || !out) return;
  float sum = 0.0f;
  for (int w = 0; w < kAttendWarps; ++w) sum += sums[warp][w][lane];
  out[sample * args.sum_stride + tap * d + i] = sum;
}

template <class S>
void features_backward(const FeaturesBackwardArgs<S>& args, const Context& context) {
  const FeaturesArgs<S>& f = args.forward;
  const int64_t blocks = blocks_for(f.channels, 32);
  PYEXT_LAUNCH(features_backward_kernel<S>, unsigned(f.samples * f.taps * blocks), kAttendThreads,
               cudaStream_t(context.stream), args, blocks);
}

// The scores of one row with one tap's keys, which a warp takes; its place is that of the warp.
template <class S>
struct ScoreRow {
  int64_t sample, tap, row, at, sum_at, seen;
  float alpha, bias;
  bool present;

  __device__ explicit ScoreRow(const WeighArgs<S>& args) {
    int64_t index = int64_t(blockIdx.x) * kAttendWarps + (threadIdx.x >> 5);
    tap = index % args.taps;
    index /= args.taps;
    row = index % args.rows;
    sample = index / args.rows;
    present = sample < args.samples;
    if (!present) return;
    at = args.at(sample, tap, row);
    sum_at = args.sum_at(sample, tap, row);
    seen = args.seen(row);
    alpha = args.alpha ? args.alpha[sample * args.alpha_stride + tap] : 1.0f;
    bias = args.score_bias ? args.score_bias[tap] : 0.0f;
  }

  // ReLU of the score of key j; what is not a number stays so.
  __device__ float weight(const WeighArgs<S>& args, int64_t j) const {
    if (j >= seen) return 0.0f;
    float score = widen(args.scores[at + j]) + bias;
    if (args.keep) score *= args.keep[sample * args.keys + j];
    return score <= 0.0f ? 0.0f : score;
  }
  // What the identity and the base add to the weight of key j, but for alpha.
  __device__ float own(const WeighArgs<S>& args, int64_t j) const {
    float sum = j == args.first_row + row ? args.rho : 0.0f;
    if (args.base_index && j == args.base_index[sample]) sum += args.scale_of_base(tap);
    return sum;
  }
};

template <class S>
__global__ void __launch_bounds__(kAttendThreads) weigh_kernel(WeighArgs<S> args) {
  const ScoreRow<S> r(args);
  if (!r.present) return;
  const int lane = int(threadIdx.x) & 31;
  float sum = 0.0f;
  for (int64_t j = lane; j < r.seen; j += 32) sum += r.weight(args, j);
  sum = warp_sum(sum);
  if (lane == 0) args.rowsum[r.sum_at] = sum;
  const float scale = 1.0f / args.norm(sum);
  for (int64_t j = lane; j < args.keys; j += 32)
    args.scores[r.at + j] =
        narrow<Product<S>>(r.alpha * (scale * r.weight(args, j) + r.own(args, j)));
}

template <class S>
void weigh(const WeighArgs<S>& args, const Context& context) {
  PYEXT_LAUNCH(weigh_kernel<S>, blocks_for(args.samples * args.taps * args.rows, kAttendWarps),
               kAttendThreads, cudaStream_t(context.stream), args);
}

template <class S>
__global__ void __launch_bounds__(kAttendThreads) weigh_backward_kernel(WeighBackwardArgs<S> args) {
  const WeighArgs<S>& f = args.forward;
  const ScoreRow<S> r(f);
  if (!r.present) return;
  const int lane = int(threadIdx.x) & 31;
  Product<S>*scores = f.scores + r.at, *products = scores + args.products;
  const float total = f.rowsum[r.sum_at], scale = 1.0f / f.norm(total);
  float mixed = 0.0f, own = 0.0f, base = 0.0f, g_bias = 0.0f;
  for (int64_t j = lane; j < f.keys; j += 32) {
    const float product = widen(products[j]);
    mixed += scale * r.weight(f, j) * product;
    own += r.own(f, j) * product;
    if (f.base_index && j == f.base_index[r.sample]) base += product;
  }
  mixed = warp_sum(mixed);
  const float shift = f.moves(total) ? mixed : 0.0f;
  for (int64_t j = lane; j < f.keys; j += 32) {
    const float weight = r.weight(f, j);
    const float g = weight > 0.0f ? r.alpha * scale * (widen(products[j]) - shift) : 0.0f;
    g_bias += g;
    scores[j] = narrow<Product<S>>(g);
    products[j] = narrow<Product<S>>(r.alpha * (scale * weight + r.own(f, j)));
  }
  if (!args.terms) return;
  own = warp_sum(own);
  base = warp_sum(base);
  g_bias = warp_sum(g_bias);
  if (lane != 0) return;
  float* terms = args.terms + kTerms * r.sum_at;
  terms[0] = mixed + own;
  terms[1] = g_bias;
  terms[2] = r.alpha * base;
}

template <class S>
void weigh_backward(const WeighBackwardArgs<S>& args, const Context& context) {
  const WeighArgs<S>& f = args.forward;
  PYEXT_LAUNCH(weigh_backward_kernel<S>, blocks_for(f.samples * f.taps * f.rows, kAttendWarps),
               kAttendThreads, cudaStream_t(context.stream), args);
}

}  // namespace pyext::side::cuda
