// What one Gaussian computes, for every backend.
//
// V is what holds a value: float or double in a CUDA thread or scalar loop, a vector of sixteen
// lanes on the CPU. S is the scalar type; camera constants are S and broadcast. Masks are whatever
// comparing two V gives. Conventions and equations: Zwicker et al. 2001 (EWA splatting), Kerbl et
// al. 2023 (3D Gaussian splatting), with the numeric choices of gsplat 1.5.
#pragma once

#include <cstdint>

#include "core/scalar.h"
#include "splat/kernels.h"

namespace pyext::splat {

constexpr double kAlphaMin = 1.0 / 255.0;    // contributions below are skipped
constexpr double kTransmittanceMin = 1e-4;   // a pixel ends before T would fall to this
constexpr double kExtentMax = 3.33;          // sigmas; about sqrt(2 ln 255)
constexpr double kCircleExtent = 3;          // sigmas, with its least half difference of variances
constexpr double kCircleFloor = 0.1;         //   squared: the choice of Kerbl et al.'s program
constexpr double kFieldOfViewMargin = 0.15;  // of the image size, for the slope clamp
constexpr double kLog2E = 1.4426950408889634;

template <class S>
struct Camera {
  S R[9], t[3];                                      // world to camera
  S fx, fy, cx, cy;                                  // pixels
  S slope_x_lo, slope_x_hi, slope_y_lo, slope_y_hi;  // limits of x/z, y/z in the Jacobian
  S width, height, eps2d, near_plane, far_plane, radius_clip, rho_min;
  bool ortho, circle, compensate;
};

template <class S>
PYEXT_HD Camera<S> camera_of(const ProjectArgs<S>& args, int64_t image) {
  const S *viewmat = args.viewmats + 16 * image, *K = args.Ks + 9 * image;
  Camera<S> cam;
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) cam.R[3 * i + j] = viewmat[4 * i + j];
    cam.t[i] = viewmat[4 * i + 3];
  }
  cam.fx = K[0];
  cam.fy = K[4];
  cam.cx = K[2];
  cam.cy = K[5];
  cam.width = S(args.width);
  cam.height = S(args.height);
  const S margin = S(kFieldOfViewMargin);
  cam.slope_x_hi = (cam.width - cam.cx + margin * cam.width) / cam.fx;
  cam.slope_x_lo = -(cam.cx + margin * cam.width) / cam.fx;
  cam.slope_y_hi = (cam.height - cam.cy + margin * cam.height) / cam.fy;
  cam.slope_y_lo = -(cam.cy + margin * cam.height) / cam.fy;
  cam.eps2d = args.eps2d;
  cam.near_plane = args.near_plane;
  cam.far_plane = args.far_plane;
  cam.radius_clip = args.radius_clip;
  cam.rho_min = args.rho_min;
  cam.ortho = args.ortho;
  cam.circle = args.circle;
  cam.compensate = args.compensate;
  return cam;
}

// Rotation matrix of a unit quaternion (w, x, y, z), row-major.
template <class V>
PYEXT_HD void rotation(const V q[4], V R[9]) {
  const V w = q[0], x = q[1], y = q[2], z = q[3];
  const V one = V(1), two = V(2);
  R[0] = one - two * (y * y + z * z);
  R[1] = two * (x * y - w * z);
  R[2] = two * (x * z + w * y);
  R[3] = two * (x * y + w * z);
  R[4] = one - two * (x * x + z * z);
  R[5] = two * (y * z - w * x);
  R[6] = two * (x * z - w * y);
  R[7] = two * (y * z + w * x);
  R[8] = one - two * (x * x + y * y);
}

// q / |q|; a zero quaternion gives not-a-number, which `project` culls. Returns 1 / |q|.
template <class V>
PYEXT_HD V normalize(const V q[4], V unit[4]) {
  const V inverse = V(1) / vsqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]);
  for (int i = 0; i < 4; ++i) unit[i] = q[i] * inverse;
  return inverse;
}

// Upper triangle of R diag(s)^2 R^T.
template <class V>
PYEXT_HD void covariance(const V quat[4], const V scale[3], V cov[6]) {
  V q[4], R[9];
  normalize(quat, q);
  rotation(q, R);
  const V s0 = scale[0] * scale[0], s1 = scale[1] * scale[1], s2 = scale[2] * scale[2];
  int k = 0;
  for (int i = 0; i < 3; ++i)
    for (int j = i; j < 3; ++j)
      cov[k++] = R[3 * i] * R[3 * j] * s0 + R[3 * i + 1] * R[3 * j + 1] * s1 +
                 R[3 * i + 2] * R[3 * j + 2] * s2;
}

// g_cov [6] (off-diagonal entries already counting both sides) to quaternion and scales.
template <class V>
PYEXT_HD void covariance_backward(const V quat[4], const V scale[3], const V g_cov[6], V g_quat[4],
                                  V g_scale[3]) {
  V q[4], R[9], G[9];
  const V inverse_norm = normalize(quat, q);
  rotation(q, R);
  const V two = V(2);
  const V H[9] = {two * g_cov[0], g_cov[1], g_cov[2], g_cov[1],      two * g_cov[3],
                  g_cov[4],       g_cov[2], g_cov[4], two * g_cov[5]};
  for (int k = 0; k < 3; ++k) {
    V dot = V(0);
    for (int i = 0; i < 3; ++i) {
      // Column k of (G + G^T) R diag(s).
      const V g_M =
          (H[3 * i] * R[k] + H[3 * i + 1] * R[3 + k] + H[3 * i + 2] * R[6 + k]) * scale[k];
      dot = dot + R[3 * i + k] * g_M;
      G[3 * i + k] = g_M * scale[k];
    }
    g_scale[k] = dot;
  }
  const V w = q[0], x = q[1], y = q[2], z = q[3];
  V g[4];
  g[0] = two * (x * (G[7] - G[5]) + y * (G[2] - G[6]) + z * (G[3] - G[1]));
  g[1] =
      two * (y * (G[1] + G[3]) + z * (G[6] + G[2]) + w * (G[7] - G[5]) - two * x * (G[4] + G[8]));
  g[2] =
      two * (x * (G[1] + G[3]) + z * (G[5] + G[7]) + w * (G[2] - G[6]) - two * y * (G[0] + G[8]));
  g[3] =
      two * (x * (G[6] + G[2]) + y * (G[5] + G[7]) + w * (G[3] - G[1]) - two * z * (G[0] + G[4]));
  const V along = g[0] * w + g[1] * x + g[2] * y + g[3] * z;
  for (int i = 0; i < 4; ++i) g_quat[i] = (g[i] - along * q[i]) * inverse_norm;
}

// R cov R^T of two upper triangles' worth of symmetric matrix.
template <class V, class S>
PYEXT_HD void rotate_symmetric(const S R[9], const V c[6], V out[6]) {
  V RC[9];
  for (int i = 0; i < 3; ++i) {
    const S r0 = R[3 * i], r1 = R[3 * i + 1], r2 = R[3 * i + 2];
    RC[3 * i] = V(r0) * c[0] + V(r1) * c[1] + V(r2) * c[2];
    RC[3 * i + 1] = V(r0) * c[1] + V(r1) * c[3] + V(r2) * c[4];
    RC[3 * i + 2] = V(r0) * c[2] + V(r1) * c[4] + V(r2) * c[5];
  }
  int k = 0;
  for (int i = 0; i < 3; ++i)
    for (int j = i; j < 3; ++j)
      out[k++] = RC[3 * i] * V(R[3 * j]) + RC[3 * i + 1] * V(R[3 * j + 1]) +
                 RC[3 * i + 2] * V(R[3 * j + 2]);
}

// Everything of the projection that both directions need. An orthographic camera is one whose
// depth is 1 everywhere: its Jacobian has neither 1/z nor the columns of z.
template <class V>
struct View {
  V x, y, z, inverse_z;  // camera coordinates; inverse_z is 1 for an orthographic camera
  V j00, j02, j11, j12;  // Jacobian of the projection, its slopes x/z and y/z clamped
  V cov[6];              // covariance in camera axes
  V s00, s01, s11;       // 2-D covariance with eps2d on its diagonal
  V det, inverse_det;
  V a, b, c;    // its inverse, the conic
  V sharp_det;  // determinant without eps2d
};

template <class V, class S>
PYEXT_HD View<V> view(const Camera<S>& cam, const V mean[3], const V cov[6]) {
  View<V> p;
  const S* R = cam.R;
  p.x = V(R[0]) * mean[0] + V(R[1]) * mean[1] + V(R[2]) * mean[2] + V(cam.t[0]);
  p.y = V(R[3]) * mean[0] + V(R[4]) * mean[1] + V(R[5]) * mean[2] + V(cam.t[1]);
  p.z = V(R[6]) * mean[0] + V(R[7]) * mean[1] + V(R[8]) * mean[2] + V(cam.t[2]);
  rotate_symmetric(R, cov, p.cov);
  p.inverse_z = cam.ortho ? V(1) : V(1) / p.z;
  p.j00 = V(cam.fx) * p.inverse_z;
  p.j11 = V(cam.fy) * p.inverse_z;
  p.j02 = p.j12 = V(0);
  if (!cam.ortho) {
    p.j02 = -(p.j00 * vmin(vmax(p.x * p.inverse_z, V(cam.slope_x_lo)), V(cam.slope_x_hi)));
    p.j12 = -(p.j11 * vmin(vmax(p.y * p.inverse_z, V(cam.slope_y_lo)), V(cam.slope_y_hi)));
  }
  const V* c = p.cov;
  const V two = V(2);
  const V s00 = p.j00 * p.j00 * c[0] + two * p.j00 * p.j02 * c[2] + p.j02 * p.j02 * c[5];
  const V s11 = p.j11 * p.j11 * c[3] + two * p.j11 * p.j12 * c[4] + p.j12 * p.j12 * c[5];
  p.s01 = p.j00 * (p.j11 * c[1] + p.j12 * c[2]) + p.j02 * (p.j11 * c[4] + p.j12 * c[5]);
  p.s00 = s00 + V(cam.eps2d);
  p.s11 = s11 + V(cam.eps2d);
  p.sharp_det = s00 * s11 - p.s01 * p.s01;
  p.det = p.s00 * p.s11 - p.s01 * p.s01;
  p.inverse_det = V(1) / p.det;
  p.a = p.s11 * p.inverse_det;
  p.b = -(p.s01 * p.inverse_det);
  p.c = p.s00 * p.inverse_det;
  return p;
}

// Square of the compensation rho before it is held at rho_min: what the blur by eps2d leaves of a
// Gaussian's peak when its integral stays (Yu et al. 2024, Mip-Splatting).
template <class V>
PYEXT_HD V squared_compensation(const View<V>& p) {
  return p.sharp_det * p.inverse_det;
}

template <class V>
struct Projected {
  V u, v, depth;
  V a, b, c;             // conic
  V rho;                 // compensation; 1 where it is not asked for
  V radius_x, radius_y;  // whole numbers; both 0 where culled, as is everything else
};

// Half sides of the box a Gaussian reaches, in whole pixels; opacity is null where not given.
template <class V, class S>
PYEXT_HD void extent(const Camera<S>& cam, const View<V>& p, const V* opacity, V* rx, V* ry) {
  if (cam.circle) {
    const V middle = V(S(0.5)) * (p.s00 + p.s11);
    const V longest = middle + vsqrt(vmax(middle * middle - p.det, V(S(kCircleFloor))));
    *rx = *ry = vceil(V(S(kCircleExtent)) * vsqrt(longest));
    return;
  }
  V sigmas = V(S(kExtentMax));
  if (opacity) {
    const V level = V(2) * vlog(*opacity * V(S(1.0 / kAlphaMin)));
    sigmas = vmin(sigmas, vsqrt(vmax(level, V(0))));
  }
  *rx = vceil(sigmas * vsqrt(p.s00));
  *ry = vceil(sigmas * vsqrt(p.s11));
}

// One Gaussian through one camera; opacity is null where not given. Comparisons are written so that
// not-a-number is culled.
template <class V, class S>
PYEXT_HD Projected<V> project(const Camera<S>& cam, const V mean[3], const V cov[6],
                              const V* opacity) {
  const View<V> p = view(cam, mean, cov);
  Projected<V> out;
  const V zero = V(0);
  V rho = V(1);
  if (cam.compensate) rho = vsqrt(vmax(squared_compensation(p), V(cam.rho_min * cam.rho_min)));
  auto keep = (p.z >= V(cam.near_plane)) & (p.z <= V(cam.far_plane));
  V effective = rho, rx, ry;
  if (opacity) {
    effective = *opacity * rho;
    keep = keep & (effective >= V(S(kAlphaMin)));
  }
  extent(cam, p, opacity ? &effective : nullptr, &rx, &ry);
  const V u = V(cam.fx) * p.x * p.inverse_z + V(cam.cx);
  const V v = V(cam.fy) * p.y * p.inverse_z + V(cam.cy);
  keep = keep & (p.det > zero);
  keep = keep & ((rx > V(cam.radius_clip)) | (ry > V(cam.radius_clip)));
  keep =
      keep & (u + rx > zero) & (u - rx < V(cam.width)) & (v + ry > zero) & (v - ry < V(cam.height));
  // Also culls what overflowed: infinite variances give a conic that is not a number, or zero,
  // which would reach every pixel.
  keep = keep & (p.a > zero) & (p.c > zero);
  out.u = select(keep, u, zero);
  out.v = select(keep, v, zero);
  out.depth = select(keep, p.z, zero);
  out.a = select(keep, p.a, zero);
  out.b = select(keep, p.b, zero);
  out.c = select(keep, p.c, zero);
  out.rho = select(keep, rho, zero);
  // Radii go to 32-bit integers; a box of 2^30 pixels covers any image.
  const V widest = V(S(1 << 30));
  out.radius_x = select(keep, vmin(rx, widest), zero);
  out.radius_y = select(keep, vmin(ry, widest), zero);
  return out;
}

// The gradient of a loss to what `project` gives for one Gaussian.
template <class V>
struct ProjectedGrad {
  V u, v, depth, a, b, c, rho;
};

constexpr int kViewGrads = 16;  // of a camera: rotation 9, translation 3, fx, fy, cx, cy

template <class V>
struct ProjectGrad {
  V mean[3], cov[6];  // to the world-space inputs
  V camera[kViewGrads];
};

// A camera's gradient laid out as its matrices [4, 4] and [3, 3].
template <class S>
PYEXT_HD void store_camera_gradient(const S g[kViewGrads], S* viewmat, S* K) {
  for (int i = 0; i < 16; ++i)
    viewmat[i] = i >= 12 ? S(0) : i % 4 == 3 ? g[9 + i / 4] : g[i / 4 * 3 + i % 4];
  for (int i = 0; i < 9; ++i) K[i] = S(0);
  K[0] = g[12];
  K[4] = g[13];
  K[2] = g[14];
  K[5] = g[15];
}

// To the 2-D covariance [[g0, g1], [g1, g2]], through the conic P: -P W P with
// W = [[g_a, g_b / 2], [g_b / 2, g_c]]; and through the compensation:
// g_rho / (2 rho) [(1 - rho^2) P - eps2d det(P) I], zero where rho is held at rho_min.
template <class V, class S>
PYEXT_HD void covariance2d_backward(const Camera<S>& cam, const View<V>& p,
                                    const ProjectedGrad<V>& g, V out[3]) {
  const V half = V(S(0.5)), zero = V(0);
  const V w01 = half * g.b;
  const V pw00 = p.a * g.a + p.b * w01, pw01 = p.a * w01 + p.b * g.c;
  const V pw10 = p.b * g.a + p.c * w01, pw11 = p.b * w01 + p.c * g.c;
  out[0] = -(pw00 * p.a + pw01 * p.b);
  out[1] = -(pw00 * p.b + pw01 * p.c);
  out[2] = -(pw10 * p.b + pw11 * p.c);
  if (!cam.compensate) return;
  const V squared = squared_compensation(p);
  const auto moves = squared > V(cam.rho_min * cam.rho_min);
  const V rate = select(moves, half * g.rho / vsqrt(squared), zero);
  const V spread = rate * (V(1) - squared), blur = rate * V(cam.eps2d) * p.inverse_det;
  out[0] = out[0] + spread * p.a - blur;
  out[1] = out[1] + spread * p.b;
  out[2] = out[2] + spread * p.c - blur;
}

// From the camera-space mean and covariance (symmetric, upper triangle s) to the world and the
// camera's pose.
template <class V, class S>
PYEXT_HD void world_backward(const Camera<S>& cam, const V mean[3], const V cov[6], const V g_mu[3],
                             const V s[6], ProjectGrad<V>* out) {
  const V two = V(2);
  const S* R = cam.R;
  const S Rt[9] = {R[0], R[3], R[6], R[1], R[4], R[7], R[2], R[5], R[8]};
  V full[6];
  rotate_symmetric(Rt, s, full);
  out->cov[0] = full[0];
  out->cov[1] = two * full[1];
  out->cov[2] = two * full[2];
  out->cov[3] = full[3];
  out->cov[4] = two * full[4];
  out->cov[5] = full[5];
  const V S3[9] = {s[0], s[1], s[2], s[1], s[3], s[4], s[2], s[4], s[5]};
  const V W3[9] = {cov[0], cov[1], cov[2], cov[1], cov[3], cov[4], cov[2], cov[4], cov[5]};
  V RW[9];
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j)
      RW[3 * i + j] =
          V(R[3 * i]) * W3[j] + V(R[3 * i + 1]) * W3[3 + j] + V(R[3 * i + 2]) * W3[6 + j];
  for (int i = 0; i < 3; ++i) {
    out->mean[i] = V(R[i]) * g_mu[0] + V(R[3 + i]) * g_mu[1] + V(R[6 + i]) * g_mu[2];
    for (int j = 0; j < 3; ++j)
      out->camera[3 * i + j] =
          g_mu[i] * mean[j] +
          two * (S3[3 * i] * RW[j] + S3[3 * i + 1] * RW[3 + j] + S3[3 * i + 2] * RW[6 + j]);
    out->camera[9 + i] = g_mu[i];
  }
}

// Gradient of `project` for one visible Gaussian.
template <class V, class S>
PYEXT_HD ProjectGrad<V> project_backward(const Camera<S>& cam, const V mean[3], const V cov[6],
                                         const ProjectedGrad<V>& g) {
  const View<V> p = view(cam, mean, cov);
  const V two = V(2), zero = V(0);
  V h[3];
  covariance2d_backward(cam, p, g, h);
  // To the covariance in camera axes: J^T H J, as upper triangle of the symmetric matrix.
  V s[6];
  s[0] = p.j00 * p.j00 * h[0];
  s[1] = p.j00 * p.j11 * h[1];
  s[2] = p.j00 * (p.j02 * h[0] + p.j12 * h[1]);
  s[3] = p.j11 * p.j11 * h[2];
  s[4] = p.j11 * (p.j02 * h[1] + p.j12 * h[2]);
  s[5] = p.j02 * p.j02 * h[0] + two * p.j02 * p.j12 * h[1] + p.j12 * p.j12 * h[2];
  // To the Jacobian: 2 H J cov.
  const V* k = p.cov;
  const V r00 = p.j00 * k[0] + p.j02 * k[2], r01 = p.j00 * k[1] + p.j02 * k[4];
  const V r02 = p.j00 * k[2] + p.j02 * k[5];
  const V r10 = p.j11 * k[1] + p.j12 * k[2], r11 = p.j11 * k[3] + p.j12 * k[4];
  const V r12 = p.j11 * k[4] + p.j12 * k[5];
  const V gj00 = two * (h[0] * r00 + h[1] * r10), gj02 = two * (h[0] * r02 + h[1] * r12);
  const V gj11 = two * (h[1] * r01 + h[2] * r11), gj12 = two * (h[1] * r02 + h[2] * r12);
  // To the camera-space mean and the intrinsics.
  const V iz = p.inverse_z, true_x = p.x * iz, true_y = p.y * iz;
  ProjectGrad<V> out;
  V g_mu[3] = {p.j00 * g.u, p.j11 * g.v, g.depth};
  V* g_K = out.camera + 12;
  g_K[0] = true_x * g.u + iz * gj00;
  g_K[1] = true_y * g.v + iz * gj11;
  g_K[2] = g.u;
  g_K[3] = g.v;
  if (!cam.ortho) {
    // j02 = -fx slope / z. Where the slope is clamped it moves with cx instead of x and z, and fx
    // cancels.
    const auto inside_x = (true_x >= V(cam.slope_x_lo)) & (true_x <= V(cam.slope_x_hi));
    const auto inside_y = (true_y >= V(cam.slope_y_lo)) & (true_y <= V(cam.slope_y_hi));
    const V moves_x = select(inside_x, iz * gj02, zero),
            moves_y = select(inside_y, iz * gj12, zero);
    g_mu[0] = g_mu[0] - p.j00 * moves_x;
    g_mu[1] = g_mu[1] - p.j11 * moves_y;
    const V slopes =
        p.j02 * gj02 * select(inside_x, two, V(1)) + p.j12 * gj12 * select(inside_y, two, V(1));
    g_mu[2] = g.depth - (p.j00 * true_x * g.u + p.j11 * true_y * g.v) -
              iz * (p.j00 * gj00 + p.j11 * gj11 + slopes);
    g_K[0] = g_K[0] - true_x * moves_x;
    g_K[1] = g_K[1] - true_y * moves_y;
    g_K[2] = g_K[2] + (iz * gj02 - moves_x);
    g_K[3] = g_K[3] + (iz * gj12 - moves_y);
  }
  world_backward(cam, mean, cov, g_mu, s, &out);
  return out;
}

}  // namespace pyext::splat
