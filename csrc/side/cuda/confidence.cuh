// Weights of taps: a softmax of products of means, small beside everything else.
#pragma once

#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"
#include "side/kernels.h"

namespace pyext::side::cuda {

constexpr int kConfidenceThreads = 128;

// The features that a tap of a sample has on average, channel i.
template <class S>
__device__ inline float mean_feature(const ConfidenceArgs<S>& args, int64_t sample, int64_t tap,
                                     int64_t i) {
  float f = args.pool[(sample * args.taps + tap) * args.channels + i];
  if (args.a) f *= args.a[tap * args.channels + i];
  return args.c ? f + args.c[tap * args.channels + i] : f;
}

// One block a sample: its warps take the products of a tap each, its first thread the softmax.
template <class S>
__global__ void __launch_bounds__(kConfidenceThreads) confidence_kernel(ConfidenceArgs<S> args) {
  const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) >> 5;
  const int64_t sample = blockIdx.x, d = args.channels;
  float* alpha = args.alpha + sample * args.taps;
  for (int64_t tap = warp; tap < args.taps; tap += kConfidenceThreads / 32) {
    float product = 0.0f;
    for (int64_t i = lane; i < d; i += 32)
      product += args.w[i] * args.pool_q[sample * d + i] * mean_feature(args, sample, tap, i);
    product = warp_sum(product);
    if (lane == 0) alpha[tap] = product + *args.b;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  float most = alpha[0], sum = 0.0f;
  for (int64_t tap = 1; tap < args.taps; ++tap) most = alpha[tap] > most ? alpha[tap] : most;
  for (int64_t tap = 0; tap < args.taps; ++tap) sum += alpha[tap] = vexp(alpha[tap] - most);
  for (int64_t tap = 0; tap < args.taps; ++tap) alpha[tap] /= sum;
}

template <class S>
void confidence(const ConfidenceArgs<S>& args, const Context& context) {
  PYEXT_LAUNCH(confidence_kernel<S>, unsigned(args.samples), kConfidenceThreads,
               cudaStream_t(context.stream), args);
}

// One block a sample: the gradient to its products [K], and what flows on to its means.
template <class S>
__global__ void __launch_bounds__(kConfidenceThreads)
    confidence_samples_kernel(ConfidenceBackwardArgs<S> args, float* g_products) {
  const ConfidenceArgs<S>& f = args.forward;
  const int64_t sample = blockIdx.x, d = f.channels, first = sample * f.taps;
  float mean = 0.0f;
  for (int64_t tap = 0; tap < f.taps; ++tap)
    mean += f.alpha[first + tap] * args.g_alpha[first + tap];
  const auto g_product = [&](int64_t tap) {
    return f.alpha[first + tap] * (args.g_alpha[first + tap] - mean);
  };
  for (int64_t tap = threadIdx.x; tap < f.taps; tap += kConfidenceThreads)
    g_products[first + tap] = g_product(tap);
  for (int64_t i = threadIdx.x; i < d; i += kConfidenceThreads) {
    const float w_q = f.w[i] * f.pool_q[sample * d + i];
    float sum = 0.0f;
    for (int64_t tap = 0; tap < f.taps; ++tap) {
      const float g = g_product(tap), a = f.a ? f.a[tap * d + i] : 1.0f;
      args.g_pool[(first + tap) * d + i] = g * w_q * a;
      sum += g * mean_feature(f, sample, tap, i);
    }
    args.g_pool_q[sample * d + i] = f.w[i] * sum;
  }
}

// One thread a channel: sums over the samples.
template <class S>
__global__ void __launch_bounds__(kConfidenceThreads)
    confidence_sums_kernel(ConfidenceBackwardArgs<S> args, const float* g_products) {
  const ConfidenceArgs<S>& f = args.forward;
  const int64_t i = int64_t(blockIdx.x) * kConfidenceThreads + threadIdx.x, d = f.channels;
  if (i >= d) return;
  float g_w = 0.0f;
  for (int64_t tap = 0; tap < f.taps; ++tap) {
    float g_a = 0.0f, g_c = 0.0f;
    for (int64_t sample = 0; sample < f.samples; ++sample) {
      const float g = g_products[sample * f.taps + tap] * f.pool_q[sample * d + i];
      g_a += g * f.pool[(sample * f.taps + tap) * d + i];
      g_c += g;
      g_w += g * mean_feature(f, sample, tap, i);
    }
    if (args.g_a) args.g_a[tap * d + i] = f.w[i] * g_a;
    if (args.g_c) args.g_c[tap * d + i] = f.w[i] * g_c;
  }
  args.g_w[i] = g_w;
}

template <class S>
void confidence_backward(const ConfidenceBackwardArgs<S>& args, const Context& context) {
  const ConfidenceArgs<S>& f = args.forward;
  const auto stream = cudaStream_t(context.stream);
  auto* g_products = static_cast<float*>(
      context.scratch(context.owner, f.samples * f.taps * int64_t(sizeof(float))));
  PYEXT_LAUNCH(confidence_samples_kernel<S>, unsigned(f.samples), kConfidenceThreads, stream, args,
               g_products);
  PYEXT_LAUNCH(confidence_sums_kernel<S>, blocks_for(f.channels, kConfidenceThreads),
               kConfidenceThreads, stream, args, g_products);
}

}  // namespace pyext::side::cuda
