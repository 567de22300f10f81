// Points on the circles through pairs of vectors: one block a pair for the inner products, then
// one thread for neighbouring elements of all points of a pair.
#pragma once

#include "circle/kernels.h"
#include "core/cuda/launch.h"

namespace pyext::circle::cuda {

constexpr int kThreads = 256;

// Values that one memory access moves.
template <class S, int N>
struct alignas(N* int(sizeof(S))) Pack {
  S v[N];
};
template <class S>
constexpr int kPackValues = 16 / int(sizeof(S));

// Whether arrays of such rows can be read sixteen bytes at a time.
template <class S, class... Pointers>
bool in_packs(int64_t width, Pointers... pointers) {
  return width % kPackValues<S> == 0 && ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

// Sums of K values over the block, to all threads, by halves.
template <int K>
__device__ inline void block_sum(double (&values)[K]) {
  __shared__ double partial[K][kThreads];
  for (int i = 0; i < K; ++i) partial[i][threadIdx.x] = values[i];
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (int(threadIdx.x) < half)
      for (int i = 0; i < K; ++i) partial[i][threadIdx.x] += partial[i][threadIdx.x + half];
    __syncthreads();
  }
  for (int i = 0; i < K; ++i) values[i] = partial[i][0];
  __syncthreads();
}

// A vector of the pool; null where the index is outside it.
template <class S>
__device__ inline const S* row_of(const InterpArgs<S>& args, int64_t entry) {
  const int64_t n = args.index[entry];
  return n >= 0 && n < args.rows ? args.pool + n * args.width : nullptr;
}

template <class S>
__global__ void __launch_bounds__(kThreads) measure_kernel(InterpArgs<S> args, Weights* weights) {
  const int64_t p = blockIdx.x;
  const S *a = row_of(args, 2 * p), *b = row_of(args, 2 * p + 1);
  const bool inside = a && b;
  double sums[3] = {0.0, 0.0, 0.0};
  for (int64_t i = threadIdx.x; inside && i < args.width; i += kThreads) {
    const double x = widen(a[i]), y = widen(b[i]);
    sums[0] += x * x;
    sums[1] += y * y;
    sums[2] += x * y;
  }
  block_sum(sums);
  const Gram gram{sums[0], sums[1], sums[2]};
  const uint8_t status = inside ? status_of(args.norm, gram, args.min_sin) : kOutside;
  if (threadIdx.x == 0) {
    args.gram[3 * p] = gram.aa, args.gram[3 * p + 1] = gram.bb, args.gram[3 * p + 2] = gram.ab;
    args.status[p] = status;
  }
  for (int64_t k = threadIdx.x; k < args.angles; k += kThreads) {
    const int64_t at = p * args.angles + k;
    weights[at] = status ? Weights{1.0, 0.0} : weights_of(args.norm, gram, args.angle[at]);
  }
}

template <class S, int N>
__global__ void __launch_bounds__(kThreads)
    combine_kernel(InterpArgs<S> args, const Weights* weights, int64_t blocks) {
  using T = Wide<S>;
  const int64_t p = blockIdx.x / blocks;
  const int64_t i = (blockIdx.x % blocks * kThreads + threadIdx.x) * N;
  const S *a = row_of(args, 2 * p), *b = row_of(args, 2 * p + 1);
  if (i >= args.width || !a || !b) return;
  const auto x = *reinterpret_cast<const Pack<S, N>*>(a + i);
  const auto y = *reinterpret_cast<const Pack<S, N>*>(b + i);
  const int64_t copy = args.pairs * args.angles * args.width;
  for (int64_t k = 0; k < args.angles; ++k) {
    const Weights w = weights[p * args.angles + k];
    const T first = T(w.first), second = T(w.second);
    Pack<S, N> z;
    for (int j = 0; j < N; ++j) {
      const T value = first * widen(x.v[j]);
      z.v[j] = narrow<S>(w.second == 0.0 ? value : fma(second, widen(y.v[j]), value));
    }
    S* out = args.z + (p * args.angles + k) * args.width + i;
    for (int64_t c = 0; c < args.copies; ++c) *reinterpret_cast<Pack<S, N>*>(out + c * copy) = z;
  }
}

template <class S, int N>
void combine(const InterpArgs<S>& args, const Weights* weights, cudaStream_t stream) {
  const int64_t blocks = blocks_for(args.width, kThreads * N);
  constexpr auto kernel = combine_kernel<S, N>;
  PYEXT_LAUNCH(kernel, unsigned(args.angles ? args.pairs * blocks : 0), kThreads, stream, args,
               weights, blocks);
}

template <class S>
void interp(const InterpArgs<S>& args, const Context& context) {
  const auto stream = cudaStream_t(context.stream);
  const int64_t bytes = args.pairs * args.angles * int64_t(sizeof(Weights));
  auto* weights = static_cast<Weights*>(context.scratch(context.owner, bytes));
  PYEXT_LAUNCH(measure_kernel<S>, unsigned(args.pairs), kThreads, stream, args, weights);
  if (in_packs<S>(args.width, args.pool, args.z))
    combine<S, kPackValues<S>>(args, weights, stream);
  else
    combine<S, 1>(args, weights, stream);
}

}  // namespace pyext::circle::cuda
