// Projection of Gaussians through cameras, one thread each.
#pragma once

#include "splat/cuda/chunks.cuh"
#include "splat/kernels.h"
#include "splat/math.h"

namespace pyext::splat::cuda {

struct Gaussian {
  float mean[3], cov[6], quat[4], scale[3];

  __device__ Gaussian(const ProjectArgs<float>& args, int64_t index) {
    for (int i = 0; i < 3; ++i) mean[i] = args.means[3 * index + i];
    if (args.covars) {
      for (int i = 0; i < 6; ++i) cov[i] = args.covars[6 * index + i];
    } else {
      for (int i = 0; i < 4; ++i) quat[i] = args.quats[4 * index + i];
      for (int i = 0; i < 3; ++i) scale[i] = args.scales[3 * index + i];
      covariance(quat, scale, cov);
    }
  }
};

__global__ void __launch_bounds__(kChunk) project_kernel(ProjectArgs<float> args) {
  const int64_t at = int64_t(blockIdx.x) * kChunk + threadIdx.x;
  if (at >= args.batches * args.cameras * args.gaussians) return;
  const int64_t image = at / args.gaussians, n = at % args.gaussians;
  const int64_t index = image / args.cameras * args.gaussians + n;
  const Gaussian g(args, index);
  const float* opacity = args.opacities ? args.opacities + index : nullptr;
  const Projected<float> p = splat::project(camera_of(args, image), g.mean, g.cov, opacity);
  args.means2d[2 * at] = p.u;
  args.means2d[2 * at + 1] = p.v;
  args.depths[at] = p.depth;
  args.conics[3 * at] = p.a;
  args.conics[3 * at + 1] = p.b;
  args.conics[3 * at + 2] = p.c;
  if (args.compensations) args.compensations[at] = p.rho;
  args.radii[2 * at] = int32_t(p.radius_x);
  args.radii[2 * at + 1] = int32_t(p.radius_y);
}

inline void project(const ProjectArgs<float>& args, const Context& context) {
  const int64_t count = args.batches * args.cameras * args.gaussians;
  PYEXT_LAUNCH(project_kernel, blocks_for(count, kChunk), kChunk, cudaStream_t(context.stream),
               args);
}

__device__ inline void store_shape_gradient(const ProjectBackwardArgs<float>& args,
                                            const Gaussian& g, int64_t index, const float g_cov[6],
                                            bool visible) {
  if (args.forward.covars) {
    for (int i = 0; i < 6; ++i) args.g_covars[6 * index + i] = g_cov[i];
    return;
  }
  float g_quat[4], g_scale[3];
  covariance_backward(g.quat, g.scale, g_cov, g_quat, g_scale);
  // A Gaussian that no camera sees has gradient zero, even where its shape is not a number.
  for (int i = 0; i < 4; ++i) args.g_quats[4 * index + i] = visible ? g_quat[i] : 0.0f;
  for (int i = 0; i < 3; ++i) args.g_scales[3 * index + i] = visible ? g_scale[i] : 0.0f;
}

__device__ inline ProjectedGrad<float> load_upstream(const ProjectBackwardArgs<float>& args,
                                                     int64_t at) {
  return {args.g_means2d[2 * at],
          args.g_means2d[2 * at + 1],
          args.g_depths[at],
          args.g_conics[3 * at],
          args.g_conics[3 * at + 1],
          args.g_conics[3 * at + 2],
          args.g_compensations ? args.g_compensations[at] : 0.0f};
}

// One block is one chunk of a batch's Gaussians; shares [B, chunks, C, kViewGrads] receives the
// chunk's sums of the gradients to the cameras.
__global__ void __launch_bounds__(kChunk)
    project_backward_kernel(ProjectBackwardArgs<float> args, int64_t chunks, float* shares) {
  const ProjectArgs<float>& f = args.forward;
  const int64_t batch = blockIdx.x / chunks;
  const int64_t n = blockIdx.x % chunks * kChunk + threadIdx.x;
  const bool present = n < f.gaussians;
  const int64_t index = batch * f.gaussians + (present ? n : 0);
  const Gaussian g(f, index);
  float g_mean[3] = {}, g_cov[6] = {};
  bool visible = false;
  for (int64_t c = 0; c < f.cameras; ++c) {
    const int64_t image = batch * f.cameras + c, at = image * f.gaussians + n;
    float camera[kViewGrads] = {};
    if (present && f.radii[2 * at] > 0 && f.radii[2 * at + 1] > 0) {
      visible = true;
      const ProjectGrad<float> grad =
          splat::project_backward(camera_of(f, image), g.mean, g.cov, load_upstream(args, at));
      for (int i = 0; i < 3; ++i) g_mean[i] += grad.mean[i];
      for (int i = 0; i < 6; ++i) g_cov[i] += grad.cov[i];
      for (int i = 0; i < kViewGrads; ++i) camera[i] = grad.camera[i];
    }
    const float sum = block_sum_each<kChunk / 32>(camera);
    if (threadIdx.x < kViewGrads)
      shares[(int64_t(blockIdx.x) * f.cameras + c) * kViewGrads + threadIdx.x] = sum;
  }
  if (!present) return;
  for (int i = 0; i < 3; ++i) args.g_means[3 * index + i] = g_mean[i];
  store_shape_gradient(args, g, index, g_cov, visible);
}

// Adds the chunks of one image's camera; one block an image.
__global__ void __launch_bounds__(kChunk)
    camera_kernel(ProjectBackwardArgs<float> args, int64_t chunks, const float* shares) {
  __shared__ float sums[kViewGrads];
  const float sum = sum_chunks<kViewGrads>(shares, chunks, args.forward.cameras, blockIdx.x);
  if (threadIdx.x < kViewGrads) sums[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x == 0)
    store_camera_gradient(sums, args.g_viewmats + 16 * int64_t(blockIdx.x),
                          args.g_Ks + 9 * int64_t(blockIdx.x));
}

inline void project_backward(const ProjectBackwardArgs<float>& args, const Context& context) {
  const ProjectArgs<float>& f = args.forward;
  const auto stream = cudaStream_t(context.stream);
  const int64_t chunks = blocks_for(f.gaussians, kChunk), per_chunk = f.cameras * kViewGrads;
  auto* shares = static_cast<float*>(
      context.scratch(context.owner, f.batches * chunks * per_chunk * int64_t(sizeof(float))));
  PYEXT_LAUNCH(project_backward_kernel, unsigned(f.batches * chunks), kChunk, stream, args, chunks,
               shares);
  PYEXT_LAUNCH(camera_kernel, unsigned(f.batches * f.cameras), kChunk, stream, args, chunks,
               shares);
}

}  // namespace pyext::splat::cuda
