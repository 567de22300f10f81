// Sums over Gaussians for each image, in a fixed order: a block sums its chunk, then a second
// kernel the chunks.
#pragma once

#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"

namespace pyext::splat::cuda {

constexpr int kChunk = 256;  // Gaussians and threads of a block

// Sums of the chunks' shares [B, chunks, C, K] of one image; thread i < K gets the i-th. All
// threads of a block of kChunk must call it.
template <int K>
__device__ inline float sum_chunks(const float* shares, int64_t chunks, int64_t cameras,
                                   int64_t image) {
  const int64_t batch = image / cameras, camera = image % cameras;
  float sums[K] = {};
  for (int64_t chunk = threadIdx.x; chunk < chunks; chunk += kChunk)
    for (int i = 0; i < K; ++i)
      sums[i] += shares[((batch * chunks + chunk) * cameras + camera) * K + i];
  return block_sum_each<kChunk / 32>(sums);
}

}  // namespace pyext::splat::cuda
