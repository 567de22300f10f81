// Maximum plus mean of square windows of a map, one thread a window of a channel.
#pragma once

#include "core/cuda/launch.h"
#include "side/kernels.h"

namespace pyext::side::cuda {

constexpr int kPoolThreads = 256;

// Neighbouring threads take neighbouring windows, so that a warp reads whole rows of the map.
template <class S>
__global__ void __launch_bounds__(kPoolThreads) maxavg_pool_kernel(MaxavgPoolArgs<S> args) {
  const int64_t at = int64_t(blockIdx.x) * kPoolThreads + threadIdx.x;
  const int64_t r = args.r, rows = args.height / r, columns = args.width / r;
  if (at >= args.batches * args.channels * rows * columns) return;
  const int64_t column = at % columns, row = at / columns % rows;
  const int64_t plane = at / (columns * rows), channel = plane % args.channels;
  const S* corner = args.x + (plane * args.height + row * r) * args.width + column * r;
  float best = widen(*corner), sum = 0.0f;
  for (int64_t i = 0; i < r; ++i)
    for (int64_t j = 0; j < r; ++j) {
      const float value = widen(corner[i * args.width + j]);
      best = value > best ? value : best;
      sum += value;
    }
  const int64_t window = (plane / args.channels * rows + row) * columns + column;
  args.y[window * args.channels + channel] = narrow<S>(best + sum / float(r * r));
}

template <class S>
void maxavg_pool(const MaxavgPoolArgs<S>& args, const Context& context) {
  const int64_t r = args.r;
  const int64_t windows = args.batches * args.channels * (args.height / r) * (args.width / r);
  PYEXT_LAUNCH(maxavg_pool_kernel<S>, blocks_for(windows, kPoolThreads), kPoolThreads,
               cudaStream_t(context.stream), args);
}

}  // namespace pyext::side::cuda
