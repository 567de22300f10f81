// Backward of the compositor, without atomics.
//
// Pixels walk their list back to front, recovering T by division. With q = f . g_C and U the value
// a pixel sees behind the Gaussian,
//   dL/dalpha = T (q - U),   U <- U + alpha (q - U),   U at the back = dL/dT_final.
// A warp sums the moments of h = alpha dL/dalpha about the Gaussian's centre, the block adds its
// warps in a fixed order into one slot per (tile, Gaussian), and a last pass adds each Gaussian's
// slots. The slots take (G + D) floats per list entry, G being the sums of the geometry: six
// moments, and two absolute gradients where they are asked for.
#pragma once

#include "splat/cuda/composite.cuh"

namespace pyext::splat::cuda {

constexpr int kMoments = 6;       // sums of h, h dx, h dy, h dx^2, h dx dy, h dy^2
constexpr int kAbsolutes = 2;     // sums of |h (a dx + b dy)|, |h (b dx + c dy)|
constexpr int kChannelChunk = 4;  // channels whose sums are taken at once when D is not known
constexpr int kGatherThreads = 256;

// Sums of one warp over its patch, for 32 Gaussians.
template <int K>
struct Partials {
  float sum[kWarps][32][K];

  __device__ void clear() {
    const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) >> 5;
    for (int k = 0; k < K; ++k) sum[warp][lane][k] = 0.0f;
    __syncwarp();
  }
  __device__ void put(int i, float (&values)[K]) {
    const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) >> 5;
    const float total = warp_sum_each(values);
    if (sum_lane(lane) < K) sum[warp][i][sum_lane(lane)] = total;
  }
  // Adds the warps; item (i, k), k < used, goes to slots[i * stride + k].
  __device__ void write(int count, int used, float* slots, int64_t stride) const {
    for (int item = int(threadIdx.x); item < count * used; item += kTileThreads) {
      const int i = item / used, k = item % used;
      float total = 0.0f;
      for (int w = 0; w < kWarps; ++w) total += sum[w][i][k];
      slots[i * stride + k] = total;
    }
  }
};

// What a pixel carries on its way back.
struct BackwardState {
  float transmittance;  // in front of the Gaussians already visited
  float behind;         // U
  int32_t last;
};

struct PixelGrad {
  float weight, h;  // both zero where the Gaussian does not contribute
};

// One Gaussian at one pixel; dot() gives f . g_C.
template <class Dot>
__device__ inline PixelGrad back_blend(const Sample& s, int64_t at, float alpha_max,
                                       BackwardState& state, Dot dot) {
  if (!s.hit || at > state.last) return {0.0f, 0.0f};
  state.transmittance /= 1.0f - s.alpha;
  const float d = dot() - state.behind;
  const float weight = s.alpha * state.transmittance;
  state.behind = fmaf(s.alpha, d, state.behind);
  // At the clamp alpha no longer moves with the opacity or the shape.
  return {weight, s.alpha < alpha_max ? weight * d : 0.0f};
}

template <int G>
__device__ inline void geometry(const CompositeArgs<float>& args, const PixelGrad& grad,
                                const Batch& batch, int j, const Pixel& pixel, float* values) {
  const float dx = pixel.x - batch.u[j], dy = pixel.y - batch.v[j];
  values[0] = grad.h;
  values[1] = grad.h * dx;
  values[2] = grad.h * dy;
  values[3] = values[1] * dx;
  values[4] = values[1] * dy;
  values[5] = values[2] * dy;
  if constexpr (G > kMoments) {
    const float* conic = args.conics + 3 * int64_t(batch.id[j]);
    values[6] = fabsf(conic[0] * values[1] + conic[1] * values[2]);
    values[7] = fabsf(conic[1] * values[1] + conic[2] * values[2]);
  }
}

// Gradients of 32 Gaussians, from place `first` of the batch on: D known when compiled.
template <int D, int G>
struct Back {
  float g_out[D] = {};

  __device__ Back(const CompositeBackwardArgs<float>& args, const Pixel& pixel) {
    if (!pixel.inside) return;
    for (int k = 0; k < D; ++k) g_out[k] = args.g_out[pixel.index * D + k];
  }
  __device__ void group(const CompositeBackwardArgs<float>& args, const Batch& batch,
                        const Pixel& pixel, int64_t at, int first, int count, unsigned bits,
                        BackwardState& state, float* slots) {
    __shared__ Partials<G + D> partials;
    const CompositeArgs<float>& f = args.forward;
    partials.clear();
    while (bits) {
      const int i = 31 - __clz(int(bits)), j = first + i;
      bits ^= 1u << i;
      const float* feature = f.features + int64_t(batch.id[j]) * D;
      const PixelGrad grad =
          back_blend(sample(batch, j, pixel, f.alpha_max), at + j, f.alpha_max, state, [&] {
            float q = feature[0] * g_out[0];
            for (int k = 1; k < D; ++k) q = fmaf(feature[k], g_out[k], q);
            return q;
          });
      if (!__any_sync(kFullWarp, grad.weight != 0.0f)) continue;
      float values[G + D];
      geometry<G>(f, grad, batch, j, pixel, values);
      for (int k = 0; k < D; ++k) values[G + k] = grad.weight * g_out[k];
      partials.put(i, values);
    }
    __syncthreads();
    partials.write(count, G + D, slots, G + D);
    __syncthreads();
  }
};

// Any number of channels: 32 weights are kept, then the features' sums are taken chunk by chunk.
template <int G>
struct Back<0, G> {
  const float* g_out = nullptr;  // null outside the image

  __device__ Back(const CompositeBackwardArgs<float>& args, const Pixel& pixel) {
    if (pixel.inside) g_out = args.g_out + pixel.index * args.forward.channels;
  }
  __device__ void group(const CompositeBackwardArgs<float>& args, const Batch& batch,
                        const Pixel& pixel, int64_t at, int first, int count, unsigned bits,
                        BackwardState& state, float* slots) {
    __shared__ float weights[32][kTileThreads];  // a thread reads back only its own column
    __shared__ Partials<G> partials;
    const CompositeArgs<float>& f = args.forward;
    const int64_t stride = G + f.channels;
    unsigned counted = 0;
    partials.clear();
    while (bits) {
      const int i = 31 - __clz(int(bits)), j = first + i;
      bits ^= 1u << i;
      const float* feature = f.features + int64_t(batch.id[j]) * f.channels;
      const PixelGrad grad =
          back_blend(sample(batch, j, pixel, f.alpha_max), at + j, f.alpha_max, state, [&] {
            float q = 0.0f;
            for (int64_t k = 0; k < f.channels; ++k) q = fmaf(feature[k], g_out[k], q);
            return q;
          });
      if (!__any_sync(kFullWarp, grad.weight != 0.0f)) continue;
      weights[i][threadIdx.x] = grad.weight;
      counted |= 1u << i;
      float values[G];
      geometry<G>(f, grad, batch, j, pixel, values);
      partials.put(i, values);
    }
    __syncthreads();
    partials.write(count, G, slots, stride);
    __syncthreads();
    for (int64_t k = 0; k < f.channels; k += kChannelChunk)
      feature_chunk(f.channels, k, weights, counted, count, slots + G, partials);
  }

 private:
  __device__ void feature_chunk(int64_t channels, int64_t k, const float (*weights)[kTileThreads],
                                unsigned counted, int count, float* slots,
                                Partials<G>& partials) const {
    const int64_t left = channels - k;
    const int used = int(left < kChannelChunk ? left : kChannelChunk);
    float g[kChannelChunk];
    for (int c = 0; c < kChannelChunk; ++c) g[c] = c < used && g_out ? g_out[k + c] : 0.0f;
    partials.clear();
    for (; counted; counted &= counted - 1) {
      const int i = __ffs(int(counted)) - 1;
      float values[G] = {};
      for (int c = 0; c < kChannelChunk; ++c) values[c] = weights[i][threadIdx.x] * g[c];
      partials.put(i, values);
    }
    __syncthreads();
    partials.write(count, used, slots + k, G + channels);
    __syncthreads();
  }
};

// The last position any pixel of the block needs.
__device__ inline int32_t block_max(int32_t value) {
  __shared__ int32_t of_warp[kWarps];
  of_warp[threadIdx.x >> 5] = __reduce_max_sync(kFullWarp, value);
  __syncthreads();
  int32_t most = of_warp[0];
  for (int w = 1; w < kWarps; ++w) most = of_warp[w] > most ? of_warp[w] : most;
  return most;
}

// slots [M, G + D] start out zero.
template <int D, int G>
__global__ void __launch_bounds__(kTileThreads)
    composite_backward_kernel(CompositeBackwardArgs<float> args, float* slots) {
  __shared__ Batch batch;
  const CompositeArgs<float>& f = args.forward;
  const Pixel pixel = pixel_of_thread(f);
  const int64_t begin = f.tile_offsets[blockIdx.x], stride = G + f.channels;
  BackwardState state{1.0f, 0.0f, -1};
  if (pixel.inside)
    state = {f.transmittance[pixel.index], args.g_transmittance[pixel.index], f.last[pixel.index]};
  const int64_t last = block_max(state.last);
  const int warp_last = __reduce_max_sync(kFullWarp, state.last);
  Back<D, G> back(args, pixel);
  if (last < begin) return;
  for (int64_t at = begin + (last - begin) / kTileThreads * kTileThreads; at >= begin;
       at -= kTileThreads) {
    const int count = int(last + 1 - at < kTileThreads ? last + 1 - at : kTileThreads);
    if (int(threadIdx.x) < count) load_into(batch, f, pixel, at + threadIdx.x);
    __syncthreads();
    for (int first = (count - 1) / 32 * 32; first >= 0; first -= 32) {
      const int group = count - first < 32 ? count - first : 32;
      const unsigned bits = at + first > warp_last ? 0u : patch_bits(batch, first, count);
      back.group(args, batch, pixel, at, first, group, bits, state, slots + (at + first) * stride);
    }
  }
}

// Sums of the geometry in a slot; those of the D features follow.
__host__ __device__ inline int64_t geometry_sums(const CompositeBackwardArgs<float>& args) {
  return kMoments + (args.g_absolute ? kAbsolutes : 0);
}

// Adds the slots of one Gaussian, one thread a sum; only the moments have another step to go.
__global__ void __launch_bounds__(kGatherThreads)
    gather_kernel(CompositeBackwardArgs<float> args, const float* slots, float* moment_sums) {
  const CompositeArgs<float>& f = args.forward;
  const int64_t geometry = geometry_sums(args), stride = geometry + f.channels;
  const int64_t item = int64_t(blockIdx.x) * kGatherThreads + threadIdx.x;
  const int64_t rank = item / stride, k = item % stride;
  if (rank >= f.images * f.gaussians) return;
  float sum = 0.0f;
  for (int64_t e = args.starts[rank]; e < args.starts[rank + 1]; ++e)
    sum += slots[args.entries_of[e] * stride + k];
  if (k < kMoments)
    moment_sums[rank * kMoments + k] = sum;
  else if (k < geometry)
    args.g_absolute[2 * int64_t(args.order[rank]) + k - kMoments] = sum;
  else
    args.g_features[int64_t(args.order[rank]) * f.channels + k - geometry] = sum;
}

__global__ void __launch_bounds__(kGatherThreads)
    finish_kernel(CompositeBackwardArgs<float> args, const float* moment_sums) {
  const CompositeArgs<float>& f = args.forward;
  const int64_t rank = int64_t(blockIdx.x) * kGatherThreads + threadIdx.x;
  if (rank >= f.images * f.gaussians) return;
  const int64_t id = args.order[rank];
  const float* m = moment_sums + rank * kMoments;
  const float a = f.conics[3 * id], b = f.conics[3 * id + 1], c = f.conics[3 * id + 2];
  // dL/dsigma = -h; offsets here run from the centre to the pixel.
  args.g_means2d[2 * id] = a * m[1] + b * m[2];
  args.g_means2d[2 * id + 1] = b * m[1] + c * m[2];
  args.g_conics[3 * id] = -0.5f * m[3];
  args.g_conics[3 * id + 1] = -m[4];
  args.g_conics[3 * id + 2] = -0.5f * m[5];
  args.g_opacities[id] = m[0] == 0.0f ? 0.0f : m[0] / f.opacities[id];
}

inline void composite_backward(const CompositeBackwardArgs<float>& args, const Context& context) {
  const CompositeArgs<float>& f = args.forward;
  const auto stream = cudaStream_t(context.stream);
  const int64_t ranks = f.images * f.gaussians, stride = geometry_sums(args) + f.channels;
  auto* slots = scratch_array<float>(context, f.entries * stride);
  auto* moment_sums = scratch_array<float>(context, ranks * kMoments);
  check_cuda(cudaMemsetAsync(slots, 0, size_t(f.entries * stride) * sizeof(float), stream),
             "clear the slots");
  with_channels(f.channels, [&](auto d) {
    constexpr int D = decltype(d)::value;
    if (args.g_absolute)
      PYEXT_LAUNCH((composite_backward_kernel<D, kMoments + kAbsolutes>), tile_count(f),
                   kTileThreads, stream, args, slots);
    else
      PYEXT_LAUNCH((composite_backward_kernel<D, kMoments>), tile_count(f), kTileThreads, stream,
                   args, slots);
  });
  PYEXT_LAUNCH(gather_kernel, blocks_for(ranks * stride, kGatherThreads), kGatherThreads, stream,
               args, slots, moment_sums);
  PYEXT_LAUNCH(finish_kernel, blocks_for(ranks, kGatherThreads), kGatherThreads, stream, args,
               moment_sums);
}

}  // namespace pyext::splat::cuda
