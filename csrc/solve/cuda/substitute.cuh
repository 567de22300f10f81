// Solutions with Cholesky factors: a block of threads a right-hand side. A diagonal block is solved
// by one warp, then all threads take what it found from the rest.
#pragma once

#include "solve/cuda/factor.cuh"

namespace pyext::solve::cuda {

// Unknowns [begin, begin + n) of a triangular system; lane i has the i-th.
template <bool Forward>
__device__ inline void solve_block(const double* factor, int64_t d, int64_t begin, int n,
                                   double* x) {
  __shared__ double found;
  const int lane = int(threadIdx.x) & 31;
  double value = lane < n ? x[begin + lane] : 0.0;
  for (int step = 0; step < n; ++step) {
    const int k = Forward ? step : n - 1 - step;
    if (lane == k) found = value = value / factor[(begin + k) * d + begin + k];
    __syncwarp();
    const double known = found;
    __syncwarp();
    const bool open = Forward ? lane > k && lane < n : lane < k;
    if (open)
      value -= known * (Forward ? factor[(begin + lane) * d + begin + k]
                                : factor[(begin + k) * d + begin + lane]);
  }
  if (lane < n) x[begin + lane] = value;
}

static __global__ void __launch_bounds__(kThreads) substitute_kernel(SubstituteArgs args) {
  const int64_t item = blockIdx.x / args.rows, d = args.d, offset = blockIdx.x * d;
  if (args.info[item] < 0) return;
  const double* factor = args.factor + item * d * d;
  double* x = args.z + offset;
  for (int64_t begin = 0; begin < d; begin += kBlock) {
    const int n = d - begin < kBlock ? int(d - begin) : kBlock;
    if (threadIdx.x < 32) solve_block<true>(factor, d, begin, n, x);
    __syncthreads();
    for (int64_t i = begin + n + threadIdx.x; i < d; i += kThreads) {
      double value = x[i];
      for (int k = 0; k < n; ++k) value -= factor[i * d + begin + k] * x[begin + k];
      x[i] = value;
    }
    __syncthreads();
  }
  for (int64_t i = threadIdx.x; args.half && i < d; i += kThreads) args.half[offset + i] = x[i];
  __syncthreads();
  for (int64_t begin = (d - 1) / kBlock * kBlock; begin >= 0; begin -= kBlock) {
    const int n = d - begin < kBlock ? int(d - begin) : kBlock;
    if (threadIdx.x < 32) solve_block<false>(factor, d, begin, n, x);
    __syncthreads();
    for (int64_t i = threadIdx.x; i < begin; i += kThreads) {
      double value = x[i];
      for (int k = 0; k < n; ++k) value -= factor[(begin + k) * d + i] * x[begin + k];
      x[i] = value;
    }
    __syncthreads();
  }
}

inline void substitute(const SubstituteArgs& args, const Context& context) {
  PYEXT_LAUNCH(substitute_kernel, unsigned(args.count * args.rows), kThreads,
               cudaStream_t(context.stream), args);
}

}  // namespace pyext::solve::cuda
