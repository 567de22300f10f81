// Orthonormal rows and their gradient, in double: one block a matrix, one warp an inner product.
#pragma once

#include "lowrank/cuda/threads.cuh"
#include "lowrank/kernels.h"

namespace pyext::lowrank::cuda {

// a . b over the warp, to all lanes.
template <class A, class B>
__device__ inline double warp_product(const A* a, const B* b, int64_t width) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x & 31; i < width; i += 32) sum += double(a[i]) * double(b[i]);
  for (int offset = 16; offset > 0; offset >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  return sum;
}

// |a|^2 over the block, to all threads.
template <class A>
__device__ inline double block_square(const A* a, int64_t width) {
  __shared__ double partial[kWarps];
  const int64_t step = (width + kWarps - 1) / kWarps, warp = threadIdx.x / 32;
  const int64_t begin = warp * step < width ? warp * step : width;
  const int64_t n = width - begin < step ? width - begin : step;
  const double own = warp_product(a + begin, a + begin, n);
  if (threadIdx.x % 32 == 0) partial[warp] = own;
  __syncthreads();
  double total = 0.0;
  for (int w = 0; w < kWarps; ++w) total += partial[w];
  __syncthreads();
  return total;
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    orthonormalize_kernel(OrthonormalizeArgs<S> args, double* memory) {
  __shared__ double share[kMaxRank], shares[kMaxRank];
  const int64_t rank = args.rank, width = args.width, values = rank * width, e = blockIdx.x;
  const S* x = args.x + e * values;
  double* work = memory + e * values;
  S* l = args.l + e * rank * rank;
  const double least = args.least * sqrt(block_square(x, values));
  bool fine = true;  // the same for all threads
  for (int64_t i = 0; i < rank && fine; ++i) {
    double* row = work + i * width;
    for (int64_t c = threadIdx.x; c < width; c += kThreads) row[c] = double(x[i * width + c]);
    if (threadIdx.x < kMaxRank) shares[threadIdx.x] = 0.0;
    for (int round = 0; round < 2; ++round) {
      __syncthreads();
      for (int64_t j = threadIdx.x / 32; j < i; j += kWarps) {
        const double product = warp_product(row, work + j * width, width);
        if (threadIdx.x % 32 == 0) share[j] = product, shares[j] += product;
      }
      __syncthreads();
      for (int64_t c = threadIdx.x; c < width; c += kThreads) {
        double left = row[c];
        for (int64_t j = 0; j < i; ++j) left -= share[j] * work[j * width + c];
        row[c] = left;
      }
    }
    __syncthreads();
    const double length = sqrt(block_square(row, width));
    fine = length > least;
    for (int64_t c = threadIdx.x; c < width; c += kThreads) row[c] /= length;
    for (int64_t j = threadIdx.x; j < rank; j += kThreads)
      l[i * rank + j] = S(j == i ? length : shares[j]);
    __syncthreads();
  }
  const S none = S(nan(""));
  for (int64_t i = threadIdx.x; i < values; i += kThreads)
    args.r[e * values + i] = fine ? S(work[i]) : none;
  for (int64_t i = threadIdx.x; i < rank * rank && !fine; i += kThreads) l[i] = none;
}

template <class S>
void orthonormalize(const OrthonormalizeArgs<S>& args, const Context& context) {
  if constexpr (sizeof(S) > 2) {
    const int64_t bytes = args.count * args.rank * args.width * int64_t(sizeof(double));
    auto* memory = static_cast<double*>(context.scratch(context.owner, bytes));
    PYEXT_LAUNCH(orthonormalize_kernel<S>, unsigned(args.count), kThreads,
                 cudaStream_t(context.stream), args, memory);
  }
}

// The gradient to x is by_g g + by_r r: see the CPU's.
struct Shares {
  double *symmetric, *by_g, *by_r;  // [count, rank, rank]
};

template <class S>
__global__ void __launch_bounds__(kThreads)
    shares_kernel(OrthonormalizeBackwardArgs<S> args, Shares shares) {
  const int64_t rank = args.rank, width = args.width, e = blockIdx.x;
  const S *g = args.g + e * rank * width, *r = args.r + e * rank * width;
  const S* l = args.l + e * rank * rank;
  double* symmetric = shares.symmetric + e * rank * rank;
  double *by_g = shares.by_g + e * rank * rank, *by_r = shares.by_r + e * rank * rank;
  for (int64_t at = threadIdx.x / 32; at < rank * rank; at += kWarps) {
    const int64_t i = at / rank, j = at % rank;
    if (j > i) continue;
    const double product = warp_product(g + i * width, r + j * width, width);
    if (threadIdx.x % 32 == 0) symmetric[i * rank + j] = symmetric[j * rank + i] = -product;
  }
  for (int64_t j = threadIdx.x; j < rank; j += kThreads)
    for (int64_t i = rank - 1; i >= 0; --i) {
      double left = i == j;
      for (int64_t k = i + 1; k <= j; ++k) left -= double(l[k * rank + i]) * by_g[k * rank + j];
      by_g[i * rank + j] = i > j ? 0.0 : left / double(l[i * rank + i]);
    }
  __syncthreads();
  for (int64_t at = threadIdx.x; at < rank * rank; at += kThreads) {
    const int64_t i = at / rank, j = at % rank;
    double sum = 0.0;
    for (int64_t k = i; k < rank; ++k) sum += by_g[i * rank + k] * symmetric[k * rank + j];
    by_r[at] = sum;
  }
}

// One thread an element of a matrix.
template <class S>
__global__ void __launch_bounds__(kThreads)
    combine_kernel(OrthonormalizeBackwardArgs<S> args, Shares shares) {
  const int64_t rank = args.rank, width = args.width, values = rank * width;
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= args.count * values) return;
  const int64_t e = at / values, i = at % values / width, c = at % width;
  double sum = 0.0;
  for (int64_t j = 0; j < rank; ++j) {
    const int64_t from = e * values + j * width + c, by = (e * rank + i) * rank + j;
    sum += shares.by_g[by] * double(args.g[from]) + shares.by_r[by] * double(args.r[from]);
  }
  args.g_x[at] = S(sum);
}

template <class S>
void orthonormalize_backward(const OrthonormalizeBackwardArgs<S>& args, const Context& context) {
  if constexpr (sizeof(S) > 2) {
    const auto stream = cudaStream_t(context.stream);
    const int64_t values = args.count * args.rank * args.rank;
    auto* memory =
        static_cast<double*>(context.scratch(context.owner, 3 * values * int64_t(sizeof(double))));
    const Shares shares{memory, memory + values, memory + 2 * values};
    PYEXT_LAUNCH(shares_kernel<S>, unsigned(args.count), kThreads, stream, args, shares);
    PYEXT_LAUNCH(combine_kernel<S>, blocks_for(args.count * args.rank * args.width, kThreads),
                 kThreads, stream, args, shares);
  }
}

}  // namespace pyext::lowrank::cuda
