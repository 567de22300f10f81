// What is done to a row of a product, one warp a row: bias, norm, and their gradients.
#pragma once

#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"
#include "side/activation.h"
#include "side/kernels.h"

namespace pyext::side::cuda {

constexpr int kRowThreads = 256;  // of a block: as many rows as warps

// The row of this thread's warp; blocks beyond the last row get one too.
__device__ inline int64_t own_row() {
  return (int64_t(blockIdx.x) * kRowThreads + threadIdx.x) / 32;
}
inline unsigned row_blocks(int64_t rows) { return blocks_for(rows * 32, kRowThreads); }

// Calls body(channel) for the channels of this lane.
template <class Body>
__device__ inline void for_each_channel(int64_t channels, Body body) {
  for (int64_t c = threadIdx.x & 31; c < channels; c += 32) body(c);
}

// Sum of value(channel) over a row's channels, to all lanes.
template <class Value>
__device__ inline float row_sum(int64_t channels, Value value) {
  float sum = 0.0f;
  for_each_channel(channels, [&](int64_t c) { sum += value(c); });
  return warp_sum(sum);
}

// A row of a product of S, plus a bias where there is one.
template <class S>
struct BiasedRow {
  const Product<S>* product;
  const S* bias;
  __device__ float operator()(int64_t c) const {
    const float u = widen(product[c]);
    return bias ? u + widen(bias[c]) : u;
  }
};

struct Moments {
  float mean, rstd;
};

// Mean and 1 / sigma of a row.
template <class Row>
__device__ inline Moments moments_of(int64_t channels, double eps, const Row& row) {
  const float mean = row_sum(channels, row) / float(channels);
  const float square = row_sum(channels, [&](int64_t c) {
    const float centred = row(c) - mean;
    return centred * centred;
  });
  return {mean, 1.0f / vsqrt(square / float(channels) + float(eps))};
}

// The gradient to a row before its norm: see the CPU's. Calls store(channel, gradient).
template <class Upstream, class Normed, class Store>
__device__ inline void norm_backward(int64_t channels, float rstd, const Upstream& g,
                                     const Normed& xhat, Store store) {
  const float mean = row_sum(channels, g) / float(channels);
  const float along =
      row_sum(channels, [&](int64_t c) { return g(c) * xhat(c); }) / float(channels);
  for_each_channel(channels, [&](int64_t c) { store(c, (g(c) - mean - xhat(c) * along) * rstd); });
}

}  // namespace pyext::side::cuda
