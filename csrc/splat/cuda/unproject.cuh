// Pixel values back to Gaussians: sums of weight times value, without atomics.
//
// A warp sums over its patch, the block adds its warps in a fixed order into one slot per (tile,
// Gaussian), and a last pass adds each Gaussian's slots. Where all channels at once would need too
// much memory they are taken in chunks, each with a march of its own.
#pragma once

#include "splat/cuda/composite_backward.cuh"
#include "splat/cuda/weights.cuh"

namespace pyext::splat::cuda {

constexpr int kSlotHead = 2;  // a slot is mass, hits, then the sums
constexpr int64_t kUnprojectSlotBytes = int64_t(1) << 30;
constexpr int64_t kLeastChannels = 32;  // of a chunk, whatever it takes

// Channels [begin, begin + count).
struct ChannelRange {
  int64_t begin, count;
  __host__ __device__ int64_t stride() const { return kSlotHead + count; }
};

// Sums of `used` values a Gaussian over the block, to slots[i * stride + c]; value(i, c) is what
// this thread's pixel has for Gaussian i of the group.
template <class Value>
__device__ inline void sum_group(Partials<kChannelChunk>& partials, unsigned counted, int count,
                                 int used, float* slots, int64_t stride, Value value) {
  partials.clear();
  for (; counted; counted &= counted - 1) {
    const int i = __ffs(int(counted)) - 1;
    float values[kChannelChunk];
    for (int c = 0; c < kChannelChunk; ++c) values[c] = c < used ? value(i, c) : 0.0f;
    partials.put(i, values);
  }
  __syncthreads();
  partials.write(count, used, slots, stride);
  __syncthreads();
}

// slots [M, 2 + channels] start out zero.
__global__ void __launch_bounds__(kTileThreads, 4)
    unproject_kernel(UnprojectArgs<float> args, ChannelRange channels, float* slots) {
  __shared__ float weights[kGroup][kTileThreads];  // a thread reads back only its own column
  __shared__ Partials<kChannelChunk> partials;
  const CompositeArgs<float>& f = args.forward;
  const Pixel pixel = pixel_of_thread(f);
  PixelState state;
  state.finished = !pixel.inside || (args.mask && !args.mask[pixel.index]);
  const float* values =
      state.finished ? nullptr : args.values + pixel.index * f.channels + channels.begin;
  for_each_group(
      f, pixel, state, [&](const Batch& batch, int64_t at, int first, int count, unsigned bits) {
        const int thread = int(threadIdx.x);
        const unsigned counted =
            weigh_group(f, batch, pixel, at, first, bits, state, weights, thread);
        if (__syncthreads_and(counted == 0)) return;
        float* slot = slots + (at + first) * channels.stride();
        sum_group(partials, counted, count, kSlotHead, slot, channels.stride(), [&](int i, int c) {
          const float weight = weights[i][thread];
          return c == 0 ? weight : float(weight != 0.0f);
        });
        for (int64_t k = 0; k < channels.count; k += kChannelChunk) {
          const int64_t left = channels.count - k;
          const int used = int(left < kChannelChunk ? left : kChannelChunk);
          sum_group(partials, counted, count, used, slot + kSlotHead + k, channels.stride(),
                    [&](int i, int c) {
                      const float weight = weights[i][thread];
                      // Nothing times not-a-number stays nothing.
                      if (weight == 0.0f) return 0.0f;
                      return args.count ? values[k + c] : weight * values[k + c];
                    });
        }
      });
}

// Adds the slots of one Gaussian, one thread a sum.
__global__ void __launch_bounds__(kGatherThreads)
    gather_sums_kernel(UnprojectArgs<float> args, ChannelRange channels, const float* slots) {
  const int64_t item = int64_t(blockIdx.x) * kGatherThreads + threadIdx.x;
  const int64_t rank = item / channels.stride(), k = item % channels.stride();
  if (rank >= args.forward.images * args.forward.gaussians) return;
  float sum = 0.0f;
  int32_t hits = 0;
  for (int64_t e = args.starts[rank]; e < args.starts[rank + 1]; ++e) {
    const float value = slots[args.entries_of[e] * channels.stride() + k];
    sum += value;
    if (k == 1) hits += int32_t(value);
  }
  const int64_t id = args.order[rank];
  if (k == 0)
    args.mass[id] = sum;
  else if (k == 1)
    args.hits[id] = hits;
  else
    args.sum[id * args.forward.channels + channels.begin + k - kSlotHead] = sum;
}

inline void unproject(const UnprojectArgs<float>& args, const Context& context) {
  const CompositeArgs<float>& f = args.forward;
  const auto stream = cudaStream_t(context.stream);
  const int64_t entries = f.entries > 0 ? f.entries : 1;
  int64_t most = kUnprojectSlotBytes / (entries * int64_t(sizeof(float))) - kSlotHead;
  most = most < kLeastChannels ? kLeastChannels : most;
  most = most < f.channels ? most : f.channels;
  auto* slots = scratch_array<float>(context, f.entries * (kSlotHead + most));
  int64_t begin = 0;
  do {  // once at least: mass and hits are wanted whatever the channels
    const ChannelRange channels{begin, f.channels - begin < most ? f.channels - begin : most};
    const int64_t stride = channels.stride();
    check_cuda(cudaMemsetAsync(slots, 0, size_t(f.entries * stride) * sizeof(float), stream),
               "clear the slots");
    PYEXT_LAUNCH(unproject_kernel, tile_count(f), kTileThreads, stream, args, channels, slots);
    PYEXT_LAUNCH(gather_sums_kernel, blocks_for(f.images * f.gaussians * stride, kGatherThreads),
                 kGatherThreads, stream, args, channels, slots);
    begin += channels.count;
  } while (begin < f.channels);
}

}  // namespace pyext::splat::cuda
