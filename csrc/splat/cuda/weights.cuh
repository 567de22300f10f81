// The compositor's weights, 32 Gaussians at a time: what the ops share that bring pixels back to
// Gaussians.
#pragma once

#include "splat/cuda/composite.cuh"

namespace pyext::splat::cuda {

constexpr int kGroup = 32;

// Walks the tile's list from `state` on and calls body(batch, at, first, count, bits) for every
// group of at most 32 Gaussians, from place `first` of the batch and position `at` + first of the
// list; `bits` are those that reach this warp's patch. The whole block calls the body together.
template <class Body>
__device__ inline void for_each_group(const CompositeArgs<float>& args, const Pixel& pixel,
                                      PixelState& state, Body body) {
  __shared__ Batch batch;
  const int64_t end = args.tile_offsets[blockIdx.x + 1];
  for (int64_t at = args.tile_offsets[blockIdx.x]; at < end; at += kTileThreads) {
    // Also keeps a fast warp from overwriting the batch a slow one still reads.
    if (__syncthreads_and(state.finished)) break;
    const int count = int(end - at < kTileThreads ? end - at : kTileThreads);
    if (int(threadIdx.x) < count) load_into(batch, args, pixel, at + threadIdx.x);
    __syncthreads();
    for (int first = 0; first < count; first += kGroup) {
      const bool over = __all_sync(kFullWarp, state.finished);
      const unsigned bits = patch_bits(batch, first, count);
      body(batch, at, first, count - first < kGroup ? count - first : kGroup, over ? 0u : bits);
    }
  }
}

// The group's weights at this pixel into weights[i][column], where any pixel of the warp has one;
// the bits of those Gaussians are returned, the same in all lanes.
__device__ inline unsigned weigh_group(const CompositeArgs<float>& args, const Batch& batch,
                                       const Pixel& pixel, int64_t at, int first, unsigned bits,
                                       PixelState& state, float (*weights)[kTileThreads],
                                       int column) {
  unsigned counted = 0;
  for (; bits; bits &= bits - 1) {
    const int i = __ffs(int(bits)) - 1, j = first + i;
    const float weight = blend(sample(batch, j, pixel, args.alpha_max), at + j, state);
    if (!__any_sync(kFullWarp, weight != 0.0f)) continue;
    weights[i][column] = weight;
    counted |= 1u << i;
  }
  return counted;
}

}  // namespace pyext::splat::cuda
