// Front-to-back compositing, one tile a block.
#pragma once

#include "splat/channels.h"
#include "splat/cuda/march.cuh"

namespace pyext::splat::cuda {

// What a pixel carries through the list.
struct PixelState {
  float transmittance = 1.0f;
  int32_t last = -1;
  bool finished;
};

// Blends one Gaussian into the pixel's state and returns its weight, zero if it does not count.
__device__ inline float blend(const Sample& s, int64_t at, PixelState& state) {
  if (!s.hit || state.finished) return 0.0f;
  const float after = fmaf(-s.alpha, state.transmittance, state.transmittance);
  if (after <= float(kTransmittanceMin)) {
    state.finished = true;
    return 0.0f;
  }
  const float weight = s.alpha * state.transmittance;
  state.transmittance = after;
  state.last = int32_t(at);
  return weight;
}

// Channels in registers: D known when compiled.
template <int D>
struct Colour {
  float sum[D] = {};
  __device__ explicit Colour(float*, int64_t) {}
  // Gaussians `bits` of the 32 at place `first` of the batch.
  template <class Weigh>
  __device__ void add(const CompositeArgs<float>& args, const Batch& batch, int first,
                      unsigned bits, Weigh weigh) {
    for (; bits; bits &= bits - 1) {
      const int j = first + __ffs(int(bits)) - 1;
      const float weight = weigh(j);
      if (weight == 0.0f) continue;
      const float* feature = args.features + int64_t(batch.id[j]) * D;
      for (int k = 0; k < D; ++k) sum[k] = fmaf(weight, feature[k], sum[k]);
    }
  }
  __device__ void finish(float* out, int64_t) const {
    for (int k = 0; k < D; ++k) out[k] = sum[k];
  }
};

// Any number of channels: 32 weights at a time, so that alpha is computed once; the sums stay in
// the image.
template <>
struct Colour<0> {
  float* out;  // null outside the image
  int64_t channels;
  __device__ Colour(float* out_, int64_t channels_) : out(out_), channels(channels_) {
    if (!out) return;
    for (int64_t k = 0; k < channels; ++k) out[k] = 0.0f;
  }
  template <class Weigh>
  __device__ void add(const CompositeArgs<float>& args, const Batch& batch, int first,
                      unsigned bits, Weigh weigh) {
    __shared__ float weights[32][kTileThreads];  // a thread reads back only its own column
    unsigned counted = 0;
    for (; bits; bits &= bits - 1) {
      const int i = __ffs(int(bits)) - 1;
      const float weight = weigh(first + i);
      weights[i][threadIdx.x] = weight;
      counted |= unsigned(weight != 0.0f) << i;
    }
    if (!out || !counted) return;
    for (int64_t k = 0; k < channels; ++k) {
      float sum = out[k];
      for (unsigned rest = counted; rest; rest &= rest - 1) {
        const int i = __ffs(int(rest)) - 1;
        const int64_t id = batch.id[first + i];
        sum = fmaf(weights[i][threadIdx.x], args.features[id * channels + k], sum);
      }
      out[k] = sum;
    }
  }
  __device__ void finish(float*, int64_t) const {}
};

template <int D>
__global__ void __launch_bounds__(kTileThreads) composite_kernel(CompositeArgs<float> args) {
  __shared__ Batch batch;
  const Pixel pixel = pixel_of_thread(args);
  const int64_t end = args.tile_offsets[blockIdx.x + 1];
  float* out = pixel.inside ? args.out + pixel.index * args.channels : nullptr;
  Colour<D> colour(out, args.channels);
  PixelState state;
  state.finished = !pixel.inside;
  for (int64_t at = args.tile_offsets[blockIdx.x]; at < end; at += kTileThreads) {
    // Also keeps a fast warp from overwriting the batch a slow one still reads.
    if (__syncthreads_and(state.finished)) break;
    const int count = int(end - at < kTileThreads ? end - at : kTileThreads);
    if (int(threadIdx.x) < count) load_into(batch, args, pixel, at + threadIdx.x);
    __syncthreads();
    for (int first = 0; first < count; first += 32) {
      if (__all_sync(kFullWarp, state.finished)) break;
      colour.add(args, batch, first, patch_bits(batch, first, count), [&](int j) {
        return blend(sample(batch, j, pixel, args.alpha_max), at + j, state);
      });
    }
  }
  if (!pixel.inside) return;
  colour.finish(out, args.channels);
  args.transmittance[pixel.index] = state.transmittance;
  args.last[pixel.index] = state.last;
}

inline unsigned tile_count(const CompositeArgs<float>& args) {
  const int64_t tiles_x = (args.width + kTile - 1) / kTile;
  const int64_t tiles_y = (args.height + kTile - 1) / kTile;
  return unsigned(args.images * tiles_x * tiles_y);
}

inline void composite(const CompositeArgs<float>& args, const Context& context) {
  with_channels(args.channels, [&](auto d) {
    PYEXT_LAUNCH(composite_kernel<decltype(d)::value>, tile_count(args), kTileThreads,
                 cudaStream_t(context.stream), args);
  });
}

}  // namespace pyext::splat::cuda
