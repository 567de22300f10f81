// Guided pooling of a map's windows, and its gradient; one block a window.
#pragma once

#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"
#include "side/kernels.h"

namespace pyext::side::cuda {

constexpr int kWindowThreads = 256;

// The window of this block.
template <class S>
struct Window {
  const GuidedPoolArgs<S>& args;
  int64_t batch, row, column;
  int r;  // side of the window; it has r r places

  __device__ explicit Window(const GuidedPoolArgs<S>& args_)
      : args(args_),
        batch(blockIdx.x / (args_.rows * args_.columns)),
        row(blockIdx.x / args_.columns % args_.rows),
        column(blockIdx.x % args_.columns),
        r(int(args_.height / args_.rows)) {}

  // Places: of its place p in a channel of the map, in the scores; of itself in guide and tokens.
  __device__ int64_t in_plane(int p) const {
    return (row * r + p / r) * args.width + column * r + p % r;
  }
  __device__ int64_t in_map(int64_t channel, int p) const {
    return (batch * args.channels + channel) * args.height * args.width + in_plane(p);
  }
  __device__ int64_t in_score(int p) const {
    return batch * args.height * args.width + in_plane(p);
  }
  __device__ int64_t in_guide(int64_t channel) const {
    return ((batch * args.channels + channel) * args.rows + row) * args.columns + column;
  }
  __device__ int64_t in_tokens(int64_t channel) const {
    return ((batch * args.rows + row) * args.columns + column) * args.channels + channel;
  }
};

// out[place] = sum over channels of value(channel) times the map, for every place of the window:
// neighbouring threads take neighbouring places, and groups of them every so many channels.
template <class S, class Value>
__device__ inline void channel_sums(const Window<S>& window, Value value, float* out) {
  __shared__ float partial[kWindowThreads];
  const int places = window.r * window.r;
  const int wide = places < kWindowThreads ? places : kWindowThreads;
  const int groups = kWindowThreads / wide, group = int(threadIdx.x) / wide;
  for (int first = 0; first < places; first += wide) {
    const int p = first + int(threadIdx.x) % wide;
    float sum = 0.0f;
    if (group < groups && p < places)
      for (int64_t c = group; c < window.args.channels; c += groups)
        sum += value(c) * widen(window.args.x[window.in_map(c, p)]);
    partial[threadIdx.x] = sum;
    __syncthreads();
    if (group == 0 && p < places) {
      for (int g = 1; g < groups; ++g) sum += partial[g * wide + int(threadIdx.x)];
      out[window.in_score(p)] = sum;
    }
    __syncthreads();
  }
}

// Sum of value(place) over the window, to all threads.
template <class S, class Value>
__device__ inline float place_sum(const Window<S>& window, Value value) {
  __shared__ float total;
  float sum[1] = {0.0f};
  for (int p = int(threadIdx.x); p < window.r * window.r; p += kWindowThreads) sum[0] += value(p);
  const float joined = block_sum_each<kWindowThreads / 32>(sum);
  if (threadIdx.x == 0) total = joined;
  __syncthreads();
  const float result = total;
  __syncthreads();
  return result;
}

// For every channel store(channel, sum over places of value(place) times the map); a warp each.
template <class S, class Value, class Store>
__device__ inline void weighted_sums(const Window<S>& window, Value value, Store store) {
  const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) >> 5;
  for (int64_t c = warp; c < window.args.channels; c += kWindowThreads / 32) {
    float sum = 0.0f;
    for (int p = lane; p < window.r * window.r; p += 32)
      sum += value(p) * widen(window.args.x[window.in_map(c, p)]);
    sum = warp_sum(sum);
    if (lane == 0) store(c, sum);
  }
}

// The weights of a window's places, from their scores.
template <class S>
struct Weights {
  const Window<S>& window;
  float scale, even;

  __device__ explicit Weights(const Window<S>& window_)
      : window(window_), scale(0.0f), even(1.0f / float(window_.r * window_.r)) {
    const float sum = place_sum(window, [&](int p) { return positive(p); });
    scale = 1.0f / (sum + float(window.args.eps));
  }
  __device__ float positive(int p) const {
    const float score = window.args.score[window.in_score(p)];
    return score > 0.0f ? score : 0.0f;
  }
  __device__ float operator()(int p) const { return positive(p) * scale + even; }
};

template <class S>
__global__ void __launch_bounds__(kWindowThreads, 2) guided_pool_kernel(GuidedPoolArgs<S> args) {
  const Window<S> window(args);
  channel_sums(
      window, [&](int64_t c) { return widen(args.guide[window.in_guide(c)]); }, args.score);
  const Weights<S> weights(window);
  weighted_sums(window, weights,
                [&](int64_t c, float sum) { args.y[window.in_tokens(c)] = narrow<S>(sum); });
}

template <class S>
void guided_pool(const GuidedPoolArgs<S>& args, const Context& context) {
  PYEXT_LAUNCH(guided_pool_kernel<S>, unsigned(args.batches * args.rows * args.columns),
               kWindowThreads, cudaStream_t(context.stream), args);
}

// g_weights [B, H, W] is scratch: the gradients of the places' weights.
template <class S>
__global__ void __launch_bounds__(kWindowThreads, 2)  // 128 registers, so that none spills
    guided_pool_backward_kernel(GuidedPoolBackwardArgs<S> args, float* g_weights) {
  const GuidedPoolArgs<S>& f = args.forward;
  const Window<S> window(f);
  const auto g_y = [&](int64_t c) { return float(widen(args.g_y[window.in_tokens(c)])); };
  channel_sums(window, g_y, g_weights);
  const Weights<S> weights(window);
  const float mean = place_sum(window, [&](int p) {
    return weights.positive(p) * weights.scale * g_weights[window.in_score(p)];
  });
  const auto g_score = [&](int p) {
    if (weights.positive(p) == 0.0f) return 0.0f;
    return (g_weights[window.in_score(p)] - mean) * weights.scale;
  };
  weighted_sums(window, g_score,
                [&](int64_t c, float sum) { args.g_guide[window.in_guide(c)] = narrow<S>(sum); });
  if (!args.g_x) return;
  const int places = window.r * window.r;
  for (int64_t i = threadIdx.x; i < f.channels * places; i += kWindowThreads) {
    const int64_t c = i / places;
    const int p = int(i % places);
    const float guide = widen(f.guide[window.in_guide(c)]);
    args.g_x[window.in_map(c, p)] = narrow<S>(weights(p) * g_y(c) + g_score(p) * guide);
  }
}

template <class S>
void guided_pool_backward(const GuidedPoolBackwardArgs<S>& args, const Context& context) {
  const GuidedPoolArgs<S>& f = args.forward;
  auto* g_weights = static_cast<float*>(
      context.scratch(context.owner, f.batches * f.height * f.width * int64_t(sizeof(float))));
  PYEXT_LAUNCH(guided_pool_backward_kernel<S>, unsigned(f.batches * f.rows * f.columns),
               kWindowThreads, cudaStream_t(context.stream), args, g_weights);
}

}  // namespace pyext::side::cuda
