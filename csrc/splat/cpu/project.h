// Projection of Gaussians through cameras, sixteen at a time.
#pragma once

#include "core/simd_rows.h"
#include "splat/cpu/gaussians.h"
#include "splat/math.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::splat;

// Sixteen Gaussians' means and covariances, from covars or from quats and scales.
template <class T>
struct Group {
  Lanes<T> mean[3], cov[6], quat[4], scale[3];

  PYEXT_INLINE Group(const ProjectArgs<T>& args, int64_t index, int count) {
    load_rows<3>(args.means + 3 * index, count, mean);
    if (args.covars) {
      load_rows<6>(args.covars + 6 * index, count, cov);
    } else {
      load_rows<4>(args.quats + 4 * index, count, quat);
      load_rows<3>(args.scales + 3 * index, count, scale);
      covariance(quat, scale, cov);
    }
  }
};

template <class T>
void store_radii(const Projected<Lanes<T>>& p, int32_t* radii, int count) {
  const Lanes<T> both[2] = {p.radius_x, p.radius_y};
  T values[2 * kLanes];
  interleave<2>(both, values);
  for (int i = 0; i < 2 * count; ++i) radii[i] = int32_t(values[i]);
}

template <class T>
void project_chunk(const ProjectArgs<T>& args, const Camera<T>& cam, int64_t batch, int64_t image,
                   int64_t first, int64_t last) {
  using V = Lanes<T>;
  for_each_group(first, last, [&](int64_t n, int count) {
    const int64_t index = batch * args.gaussians + n, at = image * args.gaussians + n;
    const Group<T> g(args, index, count);
    V opacity;
    if (args.opacities) load_rows<1>(args.opacities + index, count, &opacity);
    const Projected<V> p = splat::project(cam, g.mean, g.cov, args.opacities ? &opacity : nullptr);
    const V mean2d[2] = {p.u, p.v}, conic[3] = {p.a, p.b, p.c};
    store_rows<2>(mean2d, args.means2d + 2 * at, count);
    store_rows<1>(&p.depth, args.depths + at, count);
    store_rows<3>(conic, args.conics + 3 * at, count);
    if (args.compensations) store_rows<1>(&p.rho, args.compensations + at, count);
    store_radii(p, args.radii + 2 * at, count);
  });
}

template <class T>
void project(const ProjectArgs<T>& args, const Context&) {
  for_each_chunk(args.batches, args.gaussians,
                 [&](int64_t batch, int64_t, int64_t first, int64_t last) {
                   for (int64_t c = 0; c < args.cameras; ++c) {
                     const int64_t image = batch * args.cameras + c;
                     project_chunk(args, camera_of(args, image), batch, image, first, last);
                   }
                 });
}

template <class T>
PYEXT_INLINE ProjectedGrad<Lanes<T>> load_upstream(const ProjectBackwardArgs<T>& args, int64_t at,
                                                   int count) {
  Lanes<T> mean2d[2], conic[3], depth, rho(T(0));
  load_rows<2>(args.g_means2d + 2 * at, count, mean2d);
  load_rows<1>(args.g_depths + at, count, &depth);
  load_rows<3>(args.g_conics + 3 * at, count, conic);
  if (args.g_compensations) load_rows<1>(args.g_compensations + at, count, &rho);
  return {mean2d[0], mean2d[1], depth, conic[0], conic[1], conic[2], rho};
}

// Adds one camera's share for sixteen Gaussians; `camera` [kViewGrads] collects the camera's own
// gradient over the chunk. Returns which of them the camera sees.
template <class T>
Mask<T> project_backward_group(const ProjectBackwardArgs<T>& args, const Camera<T>& cam,
                               const Group<T>& g, int64_t at, int count, Lanes<T> g_mean[3],
                               Lanes<T> g_cov[6], T* camera) {
  using V = Lanes<T>;
  const Mask<T> seen = visible_lanes<T>(args.forward.radii + 2 * at, count);
  if (!seen.any()) return seen;
  const V zero(T(0));
  ProjectGrad<V> grad = splat::project_backward(cam, g.mean, g.cov, load_upstream(args, at, count));
  for (int i = 0; i < 3; ++i) g_mean[i] = g_mean[i] + select(seen, grad.mean[i], zero);
  for (int i = 0; i < 6; ++i) g_cov[i] = g_cov[i] + select(seen, grad.cov[i], zero);
  for (V& x : grad.camera) x = select(seen, x, zero);
  T sums[kViewGrads];
  sum_each<kViewGrads>(grad.camera, sums);
  for (int i = 0; i < kViewGrads; ++i) camera[i] += sums[i];
  return seen;
}

template <class T>
void store_shape_gradient(const ProjectBackwardArgs<T>& args, const Group<T>& g, int64_t index,
                          int count, const Lanes<T> g_cov[6], Mask<T> visible) {
  using V = Lanes<T>;
  if (args.forward.covars) return store_rows<6>(g_cov, args.g_covars + 6 * index, count);
  V g_quat[4], g_scale[3];
  covariance_backward(g.quat, g.scale, g_cov, g_quat, g_scale);
  // A Gaussian that no camera sees has gradient zero, even where its shape is not a number.
  for (V& x : g_quat) x = select(visible, x, V(T(0)));
  for (V& x : g_scale) x = select(visible, x, V(T(0)));
  store_rows<4>(g_quat, args.g_quats + 4 * index, count);
  store_rows<3>(g_scale, args.g_scales + 3 * index, count);
}

// All cameras for one chunk of Gaussians. shares [C, kViewGrads] receives the chunk's sums.
template <class T>
void project_backward_chunk(const ProjectBackwardArgs<T>& args, int64_t batch, int64_t first,
                            int64_t last, T* shares) {
  using V = Lanes<T>;
  const ProjectArgs<T>& f = args.forward;
  for (int64_t i = 0; i < kViewGrads * f.cameras; ++i) shares[i] = T(0);
  for_each_group(first, last, [&](int64_t n, int count) {
    const int64_t index = batch * f.gaussians + n;
    const Group<T> g(f, index, count);
    V g_mean[3], g_cov[6];
    for (V& x : g_mean) x = V(T(0));
    for (V& x : g_cov) x = V(T(0));
    Mask<T> visible = Mask<T>::none();
    for (int64_t c = 0; c < f.cameras; ++c) {
      const int64_t image = batch * f.cameras + c;
      visible =
          visible | project_backward_group(args, camera_of(f, image), g, image * f.gaussians + n,
                                           count, g_mean, g_cov, shares + kViewGrads * c);
    }
    store_rows<3>(g_mean, args.g_means + 3 * index, count);
    store_shape_gradient(args, g, index, count, g_cov, visible);
  });
}

template <class T>
void project_backward(const ProjectBackwardArgs<T>& args, const Context& context) {
  const ProjectArgs<T>& f = args.forward;
  const int64_t chunks = chunks_of(f.gaussians), per_chunk = f.cameras * kViewGrads;
  T* shares = static_cast<T*>(
      context.scratch(context.owner, f.batches * chunks * per_chunk * int64_t(sizeof(T))));
  for_each_chunk(f.batches, f.gaussians,
                 [&](int64_t batch, int64_t chunk, int64_t first, int64_t last) {
                   project_backward_chunk(args, batch, first, last, shares + chunk * per_chunk);
                 });
  for (int64_t image = 0; image < f.batches * f.cameras; ++image) {
    T sums[kViewGrads];
    sum_chunks<kViewGrads>(shares, chunks, f.cameras, image, sums);
    store_camera_gradient(sums, args.g_viewmats + 16 * image, args.g_Ks + 9 * image);
  }
}

}  // namespace pyext::PYEXT_ISA
