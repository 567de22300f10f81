// Sums over the lanes of a warp, in a fixed order.
#pragma once

#include <cuda_runtime.h>

namespace pyext {

constexpr unsigned kFullWarp = 0xffffffffu;

// The lane that warp_sum_each leaves sum `i` in, and back: the five bits reversed.
__device__ inline int sum_lane(int i) { return int(__brev(unsigned(i)) >> 27); }

// Sums of K values over the warp. Each halving step lets a lane keep one value of a pair and hand
// over the other, so that all K sums cost about K + 5 shuffles instead of 5 K. The sum of values[i]
// is returned to lane sum_lane(i); the values are overwritten.
template <int K>
__device__ inline float warp_sum_each(float (&values)[K]) {
  static_assert(K >= 1 && K <= 32, "one sum a lane");
  const int lane = int(threadIdx.x) & 31;
  int count = K;
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) {
    const bool upper = lane & offset;
#pragma unroll
    for (int i = 0; 2 * i < count; ++i) {
      const float even = values[2 * i];
      if (2 * i + 1 < count) {
        const float odd = values[2 * i + 1];
        const float kept = upper ? odd : even, handed = upper ? even : odd;
        values[i] = kept + __shfl_xor_sync(kFullWarp, handed, offset);
      } else {
        values[i] = even + __shfl_xor_sync(kFullWarp, even, offset);
      }
    }
    count = (count + 1) / 2;
  }
  return values[0];
}

// The sum of a value over the warp, to all lanes.
__device__ inline float warp_sum(float value) {
  for (int offset = 16; offset > 0; offset >>= 1)
    value += __shfl_xor_sync(kFullWarp, value, offset);
  return value;
}

// Sums of K values over a block of `Warps` warps; thread i < K gets the sum of values[i], the
// others zero. All threads of the block must call it.
template <int Warps, int K>
__device__ inline float block_sum_each(float (&values)[K]) {
  __shared__ float partial[Warps][K];
  const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) >> 5;
  const float sum = warp_sum_each(values);
  if (sum_lane(lane) < K) partial[warp][sum_lane(lane)] = sum;
  __syncthreads();
  float total = 0.0f;
  if (threadIdx.x < K)
    for (int w = 0; w < Warps; ++w) total += partial[w][threadIdx.x];
  __syncthreads();
  return total;
}

}  // namespace pyext
