// Taps merged inside a token. A block takes one token after another: its features go once into
// memory of the block's own, small enough for the cache; then its warps take the products between
// them, its threads a tap each for the weights, and a channel each for what is left.
#pragma once

#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"
#include "side/kernels.h"
#include "side/redundancy.h"

namespace pyext::side::cuda {

constexpr int kMergeThreads = 128;
constexpr int64_t kMergeBlocks = 512;  // tokens are taken in at most so many chunks

// A block's memory for one token.
template <class S>
struct MergeToken {
  const AntiredArgs<S>& args;
  int64_t at;  // of the token among all
  const S *h, *g;
  float* rows;  // [K + 2, d] the taps' features, w o g and, in the backward, the gradient to z
  float *gram, *coefficients;  // [K + 2, K + 2]
  Redundancy<float> merge;

  // In floats.
  __host__ __device__ static int64_t space(int64_t taps, int64_t channels) {
    return (taps + 2) * (channels + 2 * (taps + 2)) + Redundancy<float>::size(taps);
  }
  __device__ MergeToken(const AntiredArgs<S>& args_, int64_t at_, float* memory)
      : args(args_),
        at(at_),
        h(args_.h + at_ / args_.tokens * args_.sample_stride +
          at_ % args_.tokens * args_.token_stride),
        g(args_.g + at_ * args_.channels),
        rows(memory),
        gram(rows + (args_.taps + 2) * args_.channels),
        coefficients(gram + (args_.taps + 2) * (args_.taps + 2)),
        merge(args_.taps, args_.taps + 2, gram, *args_.b, args_.eps_l1, args_.eps_l2,
              coefficients + (args_.taps + 2) * (args_.taps + 2)) {}

  __device__ void load(const S* g_z) const {
    const int64_t d = args.channels;
    for (int64_t i = threadIdx.x; i < d; i += kMergeThreads) {
      for (int64_t k = 0; k < args.taps; ++k) {
        float f = widen(h[k * args.tap_stride + i]);
        if (args.a) f *= args.a[k * d + i];
        if (args.c) f += args.c[k * d + i];
        rows[k * d + i] = f;
      }
      rows[args.taps * d + i] = args.w[i] * widen(g[i]);
      if (g_z) rows[(args.taps + 1) * d + i] = widen(g_z[at * d + i]);
    }
    __syncthreads();
  }

  // Products of the first `count` rows, a warp a pair, and from them inverse, r and q.
  __device__ void weigh(int64_t count) const {
    const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) >> 5;
    const int64_t d = args.channels;
    for (int64_t pair = warp; pair < count * count; pair += kMergeThreads / 32) {
      const int64_t k = pair / count, l = pair % count;
      if (l < k) continue;
      float sum = 0.0f;
      for (int64_t i = lane; i < d; i += 32) sum += rows[k * d + i] * rows[l * d + i];
      sum = warp_sum(sum);
      if (lane == 0) gram[k * merge.stride + l] = gram[l * merge.stride + k] = sum;
    }
    __syncthreads();
    for (int64_t k = threadIdx.x; k < args.taps; k += kMergeThreads) merge.measure(k);
    __syncthreads();
    for (int64_t k = threadIdx.x; k < args.taps; k += kMergeThreads) merge.score(k);
    __syncthreads();
  }
};

// The tokens of one block: [first, last).
struct TokenRange {
  int64_t first, last;
  __device__ TokenRange(int64_t all, int64_t each) {
    first = int64_t(blockIdx.x) * each;
    last = first + each < all ? first + each : all;
  }
};

template <class S>
__global__ void __launch_bounds__(kMergeThreads)
    antired_kernel(AntiredArgs<S> args, int64_t each, float* memory) {
  memory += int64_t(blockIdx.x) * MergeToken<S>::space(args.taps, args.channels);
  const TokenRange range(args.samples * args.tokens, each);
  const int64_t d = args.channels;
  for (int64_t at = range.first; at < range.last; ++at) {
    const MergeToken<S> token(args, at, memory);
    token.load(nullptr);
    token.weigh(args.taps + 1);
    const float total = token.merge.total();
    for (int64_t k = threadIdx.x; k < args.taps; k += kMergeThreads)
      args.beta[at * args.taps + k] = token.merge.q[k] / total;
    for (int64_t i = threadIdx.x; i < d; i += kMergeThreads) {
      float z = args.add_guide ? widen(token.g[i]) : 0.0f;
      for (int64_t k = 0; k < args.taps; ++k) z += token.merge.q[k] / total * token.rows[k * d + i];
      args.z[at * d + i] = narrow<S>(z);
    }
    __syncthreads();
  }
}

// The tokens that a block takes, and how many blocks that makes.
struct MergeChunks {
  int64_t each, blocks;
  explicit MergeChunks(int64_t all)
      : each((all + kMergeBlocks - 1) / kMergeBlocks), blocks((all + each - 1) / each) {}
};

template <class S>
float* merge_memory(const AntiredArgs<S>& args, int64_t blocks, const Context& context) {
  const int64_t count = blocks * MergeToken<S>::space(args.taps, args.channels);
  return static_cast<float*>(context.scratch(context.owner, count * int64_t(sizeof(float))));
}

template <class S>
void antired(const AntiredArgs<S>& args, const Context& context) {
  const MergeChunks chunks(args.samples * args.tokens);
  float* memory = merge_memory(args, chunks.blocks, context);
  PYEXT_LAUNCH(antired_kernel<S>, unsigned(chunks.blocks), kMergeThreads,
               cudaStream_t(context.stream), args, chunks.each, memory);
}

// A block's sums over its tokens: [K, d] to a, as many to c, [d] to w and one to b. A thread adds
// to channels of its own.
__host__ __device__ inline int64_t merge_sums(int64_t taps, int64_t channels) {
  return (2 * taps + 1) * channels + 1;
}

template <class S>
__global__ void __launch_bounds__(kMergeThreads)
    antired_backward_kernel(AntiredBackwardArgs<S> args, int64_t each, float* memory, float* sums) {
  const AntiredArgs<S>& f = args.forward;
  const int64_t d = f.channels, K = f.taps;
  memory += int64_t(blockIdx.x) * MergeToken<S>::space(K, d);
  sums += int64_t(blockIdx.x) * merge_sums(K, d);
  float *g_a = sums, *g_c = g_a + K * d, *g_w = g_c + K * d, *g_b = g_w + d;
  const TokenRange range(f.samples * f.tokens, each);
  for (int64_t at = range.first; at < range.last; ++at) {
    const bool add = at > range.first;
    const MergeToken<S> token(f, at, memory);
    const Redundancy<float>& merge = token.merge;
    token.load(args.g_z);
    token.weigh(K + 2);
    const float total = merge.total(), mean = merge.mean(total);
    __syncthreads();  // r is about to change
    for (int64_t k = threadIdx.x; k < K; k += kMergeThreads) merge.weigh(k, total, mean);
    __syncthreads();
    for (int64_t k = threadIdx.x; k < K; k += kMergeThreads)
      merge.combine(k, total, token.coefficients + k * merge.stride);
    __syncthreads();
    if (threadIdx.x == 0) {
      float sum = add ? *g_b : 0.0f;
      for (int64_t k = 0; k < K; ++k) sum += merge.u[k];
      *g_b = sum;
    }
    S* g_h = args.g_h + at / f.tokens * args.sample_stride + at % f.tokens * args.token_stride;
    for (int64_t i = threadIdx.x; i < d; i += kMergeThreads) {
      const float* rows = token.rows + i;
      float relevant = 0.0f;
      for (int64_t k = 0; k < K; ++k) {
        const float* coefficients = token.coefficients + k * merge.stride;
        float g = 0.0f;
        for (int64_t l = 0; l < K + 2; ++l) g += coefficients[l] * rows[l * d];
        relevant += merge.u[k] * rows[k * d];
        const float h = widen(token.h[k * f.tap_stride + i]);
        g_a[k * d + i] = (add ? g_a[k * d + i] : 0.0f) + g * h;
        g_c[k * d + i] = (add ? g_c[k * d + i] : 0.0f) + g;
        g_h[k * args.tap_stride + i] = narrow<S>(f.a ? g * f.a[k * d + i] : g);
      }
      g_w[i] = (add ? g_w[i] : 0.0f) + relevant * widen(token.g[i]);
      const float g_g = relevant * f.w[i] + (f.add_guide ? rows[(K + 1) * d] : 0.0f);
      args.g_g[at * d + i] = narrow<S>(g_g);
    }
    __syncthreads();
  }
}

// Adds the blocks' sums, one thread a sum.
template <class S>
__global__ void __launch_bounds__(kMergeThreads)
    antired_sums_kernel(AntiredBackwardArgs<S> args, int64_t blocks, const float* sums) {
  const int64_t Kd = args.forward.taps * args.forward.channels, d = args.forward.channels;
  const int64_t i = int64_t(blockIdx.x) * kMergeThreads + threadIdx.x, count = 2 * Kd + d + 1;
  if (i >= count) return;
  float* out = i < Kd ? args.g_a : i < 2 * Kd ? args.g_c : i < 2 * Kd + d ? args.g_w : args.g_b;
  if (!out) return;
  float sum = 0.0f;
  for (int64_t block = 0; block < blocks; ++block) sum += sums[block * count + i];
  out[i < Kd ? i : i < 2 * Kd ? i - Kd : i < 2 * Kd + d ? i - 2 * Kd : 0] = sum;
}

template <class S>
void antired_backward(const AntiredBackwardArgs<S>& args, const Context& context) {
  const AntiredArgs<S>& f = args.forward;
  const auto stream = cudaStream_t(context.stream);
  const MergeChunks chunks(f.samples * f.tokens);
  const int64_t count = merge_sums(f.taps, f.channels);
  float* memory = merge_memory(f, chunks.blocks, context);
  auto* sums = static_cast<float*>(
      context.scratch(context.owner, chunks.blocks * count * int64_t(sizeof(float))));
  PYEXT_LAUNCH(antired_backward_kernel<S>, unsigned(chunks.blocks), kMergeThreads, stream, args,
               chunks.each, memory, sums);
  PYEXT_LAUNCH(antired_sums_kernel<S>, blocks_for(count, kMergeThreads), kMergeThreads, stream,
               args, chunks.blocks, sums);
}

}  // namespace pyext::side::cuda
