// Projection of Gaussians through cameras, one thread each.
#pragma once

#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"
#include "splat/kernels.h"
#include "splat/math.h"

namespace pyext::splat::cuda {

constexpr int kProjectThreads = 256;

__device__ inline Camera<float> camera_of(const ProjectArgs<float>& args, int64_t image) {
  return make_camera(args.viewmats + 16 * image, args.Ks + 9 * image, args.width, args.height,
                     args.eps2d, args.near_plane, args.far_plane, args.radius_clip);
}

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

__global__ void __launch_bounds__(kProjectThreads) project_kernel(ProjectArgs<float> args) {
  const int64_t at = int64_t(blockIdx.x) * kProjectThreads + threadIdx.x;
  if (at >= args.batches * args.cameras * args.gaussians) return;
  const int64_t image = at / args.gaussians, n = at % args.gaussians;
  const int64_t index = image / args.cameras * args.gaussians + n;
  const Gaussian g(args, index);
  const float opacity = args.opacities ? args.opacities[index] : 1.0f;
  const Projected<float> p = splat::project(camera_of(args, image), g.mean, g.cov, opacity);
  args.means2d[2 * at] = p.u;
  args.means2d[2 * at + 1] = p.v;
  args.depths[at] = p.depth;
  args.conics[3 * at] = p.a;
  args.conics[3 * at + 1] = p.b;
  args.conics[3 * at + 2] = p.c;
  args.radii[2 * at] = int32_t(p.radius_x);
  args.radii[2 * at + 1] = int32_t(p.radius_y);
}

inline void project(const ProjectArgs<float>& args, const Context& context) {
  const int64_t count = args.batches * args.cameras * args.gaussians;
  PYEXT_LAUNCH(project_kernel, blocks_for(count, kProjectThreads), kProjectThreads,
               cudaStream_t(context.stream), args);
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

// One block is one chunk of a batch's Gaussians; poses [B, chunks, C, 12] receives the chunk's sums
// of the gradients to R and t.
__global__ void __launch_bounds__(kProjectThreads)
    project_backward_kernel(ProjectBackwardArgs<float> args, int64_t chunks, float* poses) {
  const ProjectArgs<float>& f = args.forward;
  const int64_t batch = blockIdx.x / chunks;
  const int64_t n = blockIdx.x % chunks * kProjectThreads + threadIdx.x;
  const bool present = n < f.gaussians;
  const int64_t index = batch * f.gaussians + (present ? n : 0);
  const Gaussian g(f, index);
  float g_mean[3] = {}, g_cov[6] = {};
  bool visible = false;
  for (int64_t c = 0; c < f.cameras; ++c) {
    const int64_t image = batch * f.cameras + c, at = image * f.gaussians + n;
    float pose[12] = {};
    if (present && f.radii[2 * at] > 0) {
      visible = true;
      const ProjectGrad<float> grad = splat::project_backward(
          camera_of(f, image), g.mean, g.cov, args.g_means2d[2 * at], args.g_means2d[2 * at + 1],
          args.g_depths[at], args.g_conics[3 * at], args.g_conics[3 * at + 1],
          args.g_conics[3 * at + 2]);
      for (int i = 0; i < 3; ++i) g_mean[i] += grad.mean[i];
      for (int i = 0; i < 6; ++i) g_cov[i] += grad.cov[i];
      for (int i = 0; i < 9; ++i) pose[i] = grad.R[i];
      for (int i = 0; i < 3; ++i) pose[9 + i] = grad.t[i];
    }
    const float sum = block_sum_each<kProjectThreads / 32>(pose);
    if (threadIdx.x < 12) poses[(int64_t(blockIdx.x) * f.cameras + c) * 12 + threadIdx.x] = sum;
  }
  if (!present) return;
  for (int i = 0; i < 3; ++i) args.g_means[3 * index + i] = g_mean[i];
  store_shape_gradient(args, g, index, g_cov, visible);
}

// Adds the chunks of one image's pose gradient; one block an image.
__global__ void __launch_bounds__(kProjectThreads)
    pose_kernel(ProjectBackwardArgs<float> args, int64_t chunks, const float* poses) {
  const int64_t cameras = args.forward.cameras;
  const int64_t batch = blockIdx.x / cameras, camera = blockIdx.x % cameras;
  float pose[12] = {};
  for (int64_t chunk = threadIdx.x; chunk < chunks; chunk += kProjectThreads)
    for (int i = 0; i < 12; ++i)
      pose[i] += poses[((batch * chunks + chunk) * cameras + camera) * 12 + i];
  const float sum = block_sum_each<kProjectThreads / 32>(pose);
  const int i = int(threadIdx.x);
  float* out = args.g_viewmats + 16 * int64_t(blockIdx.x);
  if (i < 9) out[i / 3 * 4 + i % 3] = sum;
  if (i >= 9 && i < 12) out[4 * (i - 9) + 3] = sum;
  if (i >= 12 && i < 16) out[i] = 0.0f;
}

inline void project_backward(const ProjectBackwardArgs<float>& args, const Context& context) {
  const ProjectArgs<float>& f = args.forward;
  const auto stream = cudaStream_t(context.stream);
  const int64_t chunks = blocks_for(f.gaussians, kProjectThreads);
  auto* poses = static_cast<float*>(
      context.scratch(context.owner, f.batches * chunks * f.cameras * 12 * int64_t(sizeof(float))));
  PYEXT_LAUNCH(project_backward_kernel, unsigned(f.batches * chunks), kProjectThreads, stream, args,
               chunks, poses);
  if (args.g_viewmats)
    PYEXT_LAUNCH(pose_kernel, unsigned(f.batches * f.cameras), kProjectThreads, stream, args,
                 chunks, poses);
}

}  // namespace pyext::splat::cuda
