// Projection of Gaussians through cameras, sixteen at a time.
#pragma once

#include "core/parallel.h"
#include "core/simd.h"
#include "splat/kernels.h"
#include "splat/math.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::splat;

constexpr int64_t kProjectChunk = 1024;  // Gaussians per task; fixed, so that sums over a chunk
                                         // do not depend on the number of threads

template <class T>
Camera<T> camera_of(const ProjectArgs<T>& args, int64_t image) {
  return make_camera(args.viewmats + 16 * image, args.Ks + 9 * image, args.width, args.height,
                     args.eps2d, args.near_plane, args.far_plane, args.radius_clip);
}

// Sixteen Gaussians' means and covariances, from covars or from quats and scales.
template <class T>
struct Group {
  Lanes<T> mean[3], cov[6], quat[4], scale[3], opacity;

  Group(const ProjectArgs<T>& args, int64_t index, int count) {
    for (int i = 0; i < 3; ++i) mean[i] = load_strided(args.means + 3 * index + i, 3, count);
    if (args.covars) {
      for (int i = 0; i < 6; ++i) cov[i] = load_strided(args.covars + 6 * index + i, 6, count);
    } else {
      for (int i = 0; i < 4; ++i) quat[i] = load_strided(args.quats + 4 * index + i, 4, count);
      for (int i = 0; i < 3; ++i) scale[i] = load_strided(args.scales + 3 * index + i, 3, count);
      covariance(quat, scale, cov);
    }
    opacity = args.opacities ? load_strided(args.opacities + index, 1, count) : Lanes<T>(T(1));
  }
};

// Calls body(batch, first, last) for chunks of every batch's Gaussians.
template <class T, class Body>
void for_each_chunk(const ProjectArgs<T>& args, Body body) {
  const int64_t chunks = (args.gaussians + kProjectChunk - 1) / kProjectChunk;
  auto task = [&](int64_t index, int) {
    const int64_t batch = index / chunks, first = index % chunks * kProjectChunk;
    const int64_t last = first + kProjectChunk;
    body(batch, first, last < args.gaussians ? last : args.gaussians);
  };
  parallel_tasks(args.batches * chunks, task);
}

template <class T>
void project_chunk(const ProjectArgs<T>& args, const Camera<T>& cam, int64_t batch, int64_t image,
                   int64_t first, int64_t last) {
  for (int64_t n = first; n < last; n += kLanes) {
    const int count = int(last - n < kLanes ? last - n : kLanes);
    const Group<T> g(args, batch * args.gaussians + n, count);
    const Projected<Lanes<T>> p = splat::project(cam, g.mean, g.cov, g.opacity);
    const int64_t at = image * args.gaussians + n;
    store_strided(p.u, args.means2d + 2 * at, 2, count);
    store_strided(p.v, args.means2d + 2 * at + 1, 2, count);
    store_strided(p.depth, args.depths + at, 1, count);
    store_strided(p.a, args.conics + 3 * at, 3, count);
    store_strided(p.b, args.conics + 3 * at + 1, 3, count);
    store_strided(p.c, args.conics + 3 * at + 2, 3, count);
    T rx[kLanes], ry[kLanes];
    p.radius_x.store(rx);
    p.radius_y.store(ry);
    for (int i = 0; i < count; ++i) {
      args.radii[2 * (at + i)] = int32_t(rx[i]);
      args.radii[2 * (at + i) + 1] = int32_t(ry[i]);
    }
  }
}

template <class T>
void project(const ProjectArgs<T>& args, const Context&) {
  for_each_chunk(args, [&](int64_t batch, int64_t first, int64_t last) {
    for (int64_t c = 0; c < args.cameras; ++c) {
      const int64_t image = batch * args.cameras + c;
      project_chunk(args, camera_of(args, image), batch, image, first, last);
    }
  });
}

// Adds one camera's share for sixteen Gaussians; pose [12] collects R and t over the chunk. Returns
// which of them the camera sees.
template <class T>
Mask<T> project_backward_group(const ProjectBackwardArgs<T>& args, const Camera<T>& cam,
                               const Group<T>& g, int64_t at, int count, Lanes<T> g_mean[3],
                               Lanes<T> g_cov[6], Lanes<T> pose[12]) {
  using V = Lanes<T>;
  T seen[kLanes];
  bool any = false;
  for (int i = 0; i < kLanes; ++i) {
    const bool visible = i < count && args.forward.radii[2 * (at + (i < count ? i : 0))] > 0;
    seen[i] = T(visible);
    any |= visible;
  }
  if (!any) return Mask<T>::none();
  const auto mask = V::load(seen) > V(T(0));
  const ProjectGrad<V> grad = splat::project_backward(
      cam, g.mean, g.cov, load_strided(args.g_means2d + 2 * at, 2, count),
      load_strided(args.g_means2d + 2 * at + 1, 2, count),
      load_strided(args.g_depths + at, 1, count), load_strided(args.g_conics + 3 * at, 3, count),
      load_strided(args.g_conics + 3 * at + 1, 3, count),
      load_strided(args.g_conics + 3 * at + 2, 3, count));
  const V zero(T(0));
  for (int i = 0; i < 3; ++i) g_mean[i] = g_mean[i] + select(mask, grad.mean[i], zero);
  for (int i = 0; i < 6; ++i) g_cov[i] = g_cov[i] + select(mask, grad.cov[i], zero);
  for (int i = 0; i < 9; ++i) pose[i] = pose[i] + select(mask, grad.R[i], zero);
  for (int i = 0; i < 3; ++i) pose[9 + i] = pose[9 + i] + select(mask, grad.t[i], zero);
  return mask;
}

template <class T>
void store_shape_gradient(const ProjectBackwardArgs<T>& args, const Group<T>& g, int64_t index,
                          int count, const Lanes<T> g_cov[6], Mask<T> visible) {
  using V = Lanes<T>;
  if (args.forward.covars) {
    for (int i = 0; i < 6; ++i) store_strided(g_cov[i], args.g_covars + 6 * index + i, 6, count);
    return;
  }
  V g_quat[4], g_scale[3];
  covariance_backward(g.quat, g.scale, g_cov, g_quat, g_scale);
  // A Gaussian that no camera sees has gradient zero, even where its shape is not a number.
  for (int i = 0; i < 4; ++i)
    store_strided(select(visible, g_quat[i], V(T(0))), args.g_quats + 4 * index + i, 4, count);
  for (int i = 0; i < 3; ++i)
    store_strided(select(visible, g_scale[i], V(T(0))), args.g_scales + 3 * index + i, 3, count);
}

// All cameras for one chunk of Gaussians. poses [C, 12] receives the chunk's sums.
template <class T>
void project_backward_chunk(const ProjectBackwardArgs<T>& args, int64_t batch, int64_t first,
                            int64_t last, T* poses) {
  using V = Lanes<T>;
  const ProjectArgs<T>& f = args.forward;
  for (int64_t i = 0; i < 12 * f.cameras; ++i) poses[i] = T(0);
  for (int64_t n = first; n < last; n += kLanes) {
    const int count = int(last - n < kLanes ? last - n : kLanes);
    const int64_t index = batch * f.gaussians + n;
    const Group<T> g(f, index, count);
    V g_mean[3], g_cov[6];
    for (V& x : g_mean) x = V(T(0));
    for (V& x : g_cov) x = V(T(0));
    Mask<T> visible = Mask<T>::none();
    for (int64_t c = 0; c < f.cameras; ++c) {
      const int64_t image = batch * f.cameras + c;
      V pose[12];
      for (V& x : pose) x = V(T(0));
      visible =
          visible | project_backward_group(args, camera_of(f, image), g, image * f.gaussians + n,
                                           count, g_mean, g_cov, pose);
      for (int i = 0; i < 12; ++i) poses[12 * c + i] += pose[i].sum();
    }
    for (int i = 0; i < 3; ++i) store_strided(g_mean[i], args.g_means + 3 * index + i, 3, count);
    store_shape_gradient(args, g, index, count, g_cov, visible);
  }
}

template <class T>
void project_backward(const ProjectBackwardArgs<T>& args, const Context& context) {
  const ProjectArgs<T>& f = args.forward;
  const int64_t chunks = (f.gaussians + kProjectChunk - 1) / kProjectChunk;
  const int64_t images = f.batches * f.cameras;
  T* poses = static_cast<T*>(
      context.scratch(context.owner, f.batches * chunks * f.cameras * 12 * int64_t(sizeof(T))));
  for_each_chunk(f, [&](int64_t batch, int64_t first, int64_t last) {
    const int64_t chunk = batch * chunks + first / kProjectChunk;
    project_backward_chunk(args, batch, first, last, poses + chunk * f.cameras * 12);
  });
  if (!args.g_viewmats) return;
  for (int64_t image = 0; image < images; ++image) {
    T* out = args.g_viewmats + 16 * image;
    for (int i = 0; i < 16; ++i) out[i] = T(0);
    const int64_t batch = image / f.cameras, camera = image % f.cameras;
    for (int64_t chunk = batch * chunks; chunk < (batch + 1) * chunks; ++chunk) {
      const T* pose = poses + (chunk * f.cameras + camera) * 12;
      for (int i = 0; i < 9; ++i) out[i / 3 * 4 + i % 3] += pose[i];
      for (int i = 0; i < 3; ++i) out[4 * i + 3] += pose[9 + i];
    }
  }
}

}  // namespace pyext::PYEXT_ISA
