// The Gaussians with the largest weights behind each pixel, one thread a pixel.
#pragma once

#include "splat/cuda/weights.cuh"

namespace pyext::splat::cuda {

// Puts a weight in its place among the k largest; of equal ones the first stays in front. Returns
// how many are held.
__device__ inline int64_t insert_contributor(const ContributorsArgs<float>& args, int64_t pixel,
                                             int64_t held, int32_t index, float weight) {
  float* weights = args.weights + pixel * args.k;
  int32_t* ids = args.ids + pixel * args.k;
  int64_t place = held;
  while (place > 0 && weights[place - 1] < weight) --place;
  if (place == args.k) return held;
  const int64_t now = held < args.k ? held + 1 : held;
  for (int64_t i = now - 1; i > place; --i) {
    weights[i] = weights[i - 1];
    ids[i] = ids[i - 1];
  }
  weights[place] = weight;
  ids[place] = index;
  return now;
}

__global__ void __launch_bounds__(kTileThreads, 4)
    contributors_kernel(ContributorsArgs<float> args) {
  const CompositeArgs<float>& f = args.forward;
  const Pixel pixel = pixel_of_thread(f);
  PixelState state;
  state.finished = !pixel.inside;
  const int32_t image_base = int32_t(pixel.image * f.gaussians);
  int64_t held = 0;
  int32_t total = 0;
  for_each_group(
      f, pixel, state, [&](const Batch& batch, int64_t at, int first, int, unsigned bits) {
        for (; bits; bits &= bits - 1) {
          const int j = first + __ffs(int(bits)) - 1;
          const float weight = blend(sample(batch, j, pixel, f.alpha_max), at + j, state);
          if (weight == 0.0f) continue;
          const int32_t index = batch.id[j] - image_base;
          held = insert_contributor(args, pixel.index, held, index, weight);
          ++total;
        }
      });
  if (!pixel.inside) return;
  args.count[pixel.index] = total;
  for (; held < args.k; ++held) {
    args.ids[pixel.index * args.k + held] = -1;
    args.weights[pixel.index * args.k + held] = 0.0f;
  }
}

inline void contributors(const ContributorsArgs<float>& args, const Context& context) {
  PYEXT_LAUNCH(contributors_kernel, tile_count(args.forward), kTileThreads,
               cudaStream_t(context.stream), args);
}

}  // namespace pyext::splat::cuda
