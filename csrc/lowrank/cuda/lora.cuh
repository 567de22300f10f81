// Many LoRAs in one batch: every row reads the factor of its own adapter.
#pragma once

#include "lowrank/cuda/products.cuh"

namespace pyext::lowrank::cuda {

// One block a row, one warp a rank.
template <class S>
__global__ void __launch_bounds__(kThreads) lora_shrink_kernel(LoraShrinkArgs<S> args) {
  using T = Wide<S>;
  const int64_t n = blockIdx.x, rank = args.routing.rank;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const bool has = args.routing.has(n);
  const int64_t e = has ? args.routing.adapter[n] : 0;
  const int64_t first = has ? args.routing.first_of(e) : 0;
  const int64_t own = has ? args.routing.rank_of(e) : 0;
  for (int64_t j = warp; j < rank; j += kWarps) {
    T sum = T(0);
    const T* row = args.W + (first + j) * args.width;
    for (int64_t k = lane; j < own && k < args.width; k += 32)
      sum += widen(args.x[n * args.stride + k]) * row[k];
    sum = warp_sum(sum);
    if (lane == 0) args.z[n * rank + j] = j < own && args.scale ? args.scale[e] * sum : sum;
  }
}

template <class S>
void lora_shrink(const LoraShrinkArgs<S>& args, const Context& context) {
  PYEXT_LAUNCH(lora_shrink_kernel<S>, unsigned(args.routing.rows), kThreads,
               cudaStream_t(context.stream), args);
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    lora_expand_kernel(LoraExpandArgs<S> args, int64_t column_tiles) {
  using T = Wide<S>;
  const int64_t n = blockIdx.x / column_tiles, rank = args.routing.rank;
  const int64_t column = blockIdx.x % column_tiles * kThreads + threadIdx.x;
  const bool has = args.routing.has(n);
  if (column >= args.width || (args.add && !has)) return;
  S* y = args.y + n * args.stride + column;
  T sum = args.add ? widen(*y) : T(0);
  if (has) {
    const int64_t e = args.routing.adapter[n];
    const T scale = args.scale ? args.scale[e] : T(1);
    const int64_t first = args.routing.first_of(e), own = args.routing.rank_of(e);
    for (int64_t j = 0; j < own; ++j)
      sum += scale * args.z[n * rank + j] * args.W[(first + j) * args.width + column];
  }
  *y = narrow<S>(sum);
}

template <class S>
void lora_expand(const LoraExpandArgs<S>& args, const Context& context) {
  const int64_t tiles = blocks_for(args.width, kThreads);
  PYEXT_LAUNCH(lora_expand_kernel<S>, unsigned(args.routing.rows * tiles), kThreads,
               cudaStream_t(context.stream), args, tiles);
}

// One thread a column and eight ranks of one adapter, over all its rows.
template <class S>
__global__ void __launch_bounds__(kThreads)
    lora_outer_kernel(LoraOuterArgs<S> args, int64_t column_tiles, int64_t rank_tiles) {
  using T = Wide<S>;
  const int64_t rank = args.routing.rank;
  const int64_t column = blockIdx.x % column_tiles * kThreads + threadIdx.x;
  const int64_t j0 = blockIdx.x / column_tiles % rank_tiles * kOuterColumns;
  const int64_t e = blockIdx.x / column_tiles / rank_tiles;
  const int64_t first = args.routing.first_of(e), own = args.routing.rank_of(e);
  if (column >= args.width || j0 >= own) return;
  const T scale = args.scale ? args.scale[e] : T(1);
  T sums[kOuterColumns] = {};
  for (int64_t n = 0; n < args.routing.rows; ++n) {
    if (args.routing.adapter[n] != e) continue;
    const T value = widen(args.x[n * args.stride + column]);
    PYEXT_UNROLL
    for (int j = 0; j < kOuterColumns; ++j)
      if (j0 + j < own) sums[j] += scale * args.z[n * rank + j0 + j] * value;
  }
  PYEXT_UNROLL
  for (int j = 0; j < kOuterColumns; ++j)
    if (j0 + j < own) args.G[(first + j0 + j) * args.width + column] = sums[j];
}

template <class S>
void lora_outer(const LoraOuterArgs<S>& args, const Context& context) {
  const int64_t columns = blocks_for(args.width, kThreads);
  const int64_t ranks = blocks_for(args.routing.rank, kOuterColumns);
  PYEXT_LAUNCH(lora_outer_kernel<S>, unsigned(args.routing.adapters * columns * ranks), kThreads,
               cudaStream_t(context.stream), args, columns, ranks);
}

}  // namespace pyext::lowrank::cuda
