// Colours from spherical harmonics, one thread a Gaussian.
#pragma once

#include "splat/cuda/chunks.cuh"
#include "splat/kernels.h"
#include "splat/sh.h"

namespace pyext::splat::cuda {

__device__ inline bool sh_visible(const ShArgs<float>& args, int64_t at) {
  return !args.radii || (args.radii[2 * at] > 0 && args.radii[2 * at + 1] > 0);
}

__device__ inline int64_t coefficients_at(const ShArgs<float>& args, int64_t batch, int64_t image,
                                          int64_t n) {
  return ((args.shared ? batch : image) * args.gaussians + n) * args.coefficients * args.channels;
}

template <int Degree>
__global__ void __launch_bounds__(kChunk) sh_kernel(ShArgs<float> args) {
  const int64_t at = int64_t(blockIdx.x) * kChunk + threadIdx.x;
  if (at >= args.batches * args.cameras * args.gaussians) return;
  const int64_t image = at / args.gaussians, n = at % args.gaussians, batch = image / args.cameras;
  const int64_t D = args.channels;
  float* colours = args.colours + at * D;
  if (!sh_visible(args, at)) {
    for (int64_t k = 0; k < D; ++k) colours[k] = 0.0f;
    return;
  }
  const Direction<float> direction(args.means + 3 * (batch * args.gaussians + n),
                                   args.centres + 3 * image);
  float bases[sh_bases_of(Degree)];
  sh_bases<Degree>(direction.d[0], direction.d[1], direction.d[2], bases);
  const float* coeffs = args.coeffs + coefficients_at(args, batch, image, n);
  for (int64_t channel = 0; channel < D; ++channel) {
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < sh_bases_of(Degree); ++k) sum += bases[k] * coeffs[k * D + channel];
    colours[channel] = sum;
  }
}

inline void sh(const ShArgs<float>& args, const Context& context) {
  const unsigned blocks = blocks_for(args.batches * args.cameras * args.gaussians, kChunk);
  with_degree(args.degree, [&](auto degree) {
    constexpr auto kernel = sh_kernel<decltype(degree)::value>;
    PYEXT_LAUNCH(kernel, blocks, kChunk, cudaStream_t(context.stream), args);
  });
}

// The gradient of one visible Gaussian in one image to mean - centre. Its share of g_coeffs is
// written, or added if `add`.
template <int Degree>
__device__ inline void sh_backward_one(const ShBackwardArgs<float>& args,
                                       const Direction<float>& direction, int64_t at,
                                       int64_t coefficients, bool add, float g_offset[3]) {
  constexpr int kBases = sh_bases_of(Degree);
  const int64_t D = args.forward.channels;
  const float* coeffs = args.forward.coeffs + coefficients;
  float* g_coeffs = args.g_coeffs + coefficients;
  const float* d = direction.d;
  float bases[kBases], weights[kBases] = {}, g_unit[3];
  sh_bases<Degree>(d[0], d[1], d[2], bases);
  for (int64_t channel = 0; channel < D; ++channel) {
    const float g_colour = args.g_colours[at * D + channel];
#pragma unroll
    for (int k = 0; k < kBases; ++k) {
      const int64_t i = k * D + channel;
      g_coeffs[i] = (add ? g_coeffs[i] : 0.0f) + bases[k] * g_colour;
      weights[k] += coeffs[i] * g_colour;
    }
  }
  splat::sh_backward<Degree>(d[0], d[1], d[2], weights, g_unit);
  direction.backward(g_unit, g_offset);
}

// One block is one chunk of a batch's Gaussians; shares [B, chunks, C, 3] receives the chunk's sums
// of the gradients to the centres.
template <int Degree>
__global__ void __launch_bounds__(kChunk, 2)  // 128 registers, so that none spills
    sh_backward_kernel(ShBackwardArgs<float> args, int64_t chunks, float* shares) {
  const ShArgs<float>& f = args.forward;
  const int64_t batch = blockIdx.x / chunks;
  const int64_t n = blockIdx.x % chunks * kChunk + threadIdx.x;
  const bool present = n < f.gaussians;
  float g_mean[3] = {};
  for (int64_t c = 0; c < f.cameras; ++c) {
    const int64_t image = batch * f.cameras + c, at = image * f.gaussians + n;
    const bool add = f.shared && c > 0;
    float g_centre[3] = {};
    if (present) {
      const int64_t coefficients = coefficients_at(f, batch, image, n);
      if (sh_visible(f, at)) {
        const Direction<float> direction(f.means + 3 * (batch * f.gaussians + n),
                                         f.centres + 3 * image);
        float g_offset[3];
        sh_backward_one<Degree>(args, direction, at, coefficients, add, g_offset);
        for (int i = 0; i < 3; ++i) g_mean[i] += g_offset[i];
        for (int i = 0; i < 3; ++i) g_centre[i] = -g_offset[i];
      } else if (!add) {
        for (int64_t i = 0; i < sh_bases_of(Degree) * f.channels; ++i)
          args.g_coeffs[coefficients + i] = 0.0f;
      }
    }
    const float sum = block_sum_each<kChunk / 32>(g_centre);
    if (threadIdx.x < 3) shares[(int64_t(blockIdx.x) * f.cameras + c) * 3 + threadIdx.x] = sum;
  }
  if (!present) return;
  for (int i = 0; i < 3; ++i) args.g_means[3 * (batch * f.gaussians + n) + i] = g_mean[i];
}

// Adds the chunks of one image's centre; one block an image.
__global__ void __launch_bounds__(kChunk)
    centre_kernel(ShBackwardArgs<float> args, int64_t chunks, const float* shares) {
  const float sum = sum_chunks<3>(shares, chunks, args.forward.cameras, blockIdx.x);
  if (threadIdx.x < 3) args.g_centres[3 * int64_t(blockIdx.x) + threadIdx.x] = sum;
}

inline void sh_backward(const ShBackwardArgs<float>& args, const Context& context) {
  const ShArgs<float>& f = args.forward;
  const auto stream = cudaStream_t(context.stream);
  const int64_t chunks = blocks_for(f.gaussians, kChunk);
  auto* shares = static_cast<float*>(
      context.scratch(context.owner, f.batches * chunks * f.cameras * 3 * int64_t(sizeof(float))));
  with_degree(f.degree, [&](auto degree) {
    constexpr auto kernel = sh_backward_kernel<decltype(degree)::value>;
    PYEXT_LAUNCH(kernel, unsigned(f.batches * chunks), kChunk, stream, args, chunks, shares);
  });
  PYEXT_LAUNCH(centre_kernel, unsigned(f.batches * f.cameras), kChunk, stream, args, chunks,
               shares);
}

}  // namespace pyext::splat::cuda
