// What one Gaussian computes, for every backend.
//
// V is what holds a value: float or double in a CUDA thread or scalar loop, a vector of sixteen
// lanes on the CPU. S is the scalar type; camera constants are S and broadcast. Masks are whatever
// comparing two V gives. Conventions and equations: Zwicker et al. 2001 (EWA splatting), Kerbl et
// al. 2023 (3D Gaussian splatting), with the numeric choices of gsplat 1.5.
#pragma once

#include <cstdint>

#include "core/scalar.h"

namespace pyext::splat {

constexpr double kAlphaMin = 1.0 / 255.0;    // contributions below are skipped
constexpr double kTransmittanceMin = 1e-4;   // a pixel ends before T would fall to this
constexpr double kExtentMax = 3.33;          // sigmas; about sqrt(2 ln 255)
constexpr double kFieldOfViewMargin = 0.15;  // of the image size, for the slope clamp
constexpr double kLog2E = 1.4426950408889634;

template <class S>
struct Camera {
  S R[9], t[3];                                      // world to camera
  S fx, fy, cx, cy;                                  // pixels
  S slope_x_lo, slope_x_hi, slope_y_lo, slope_y_hi;  // limits of x/z, y/z in the Jacobian
  S width, height, eps2d, near_plane, far_plane, radius_clip;
};

template <class S>
PYEXT_HD Camera<S> make_camera(const S* viewmat, const S* K, int32_t width, int32_t height, S eps2d,
                               S near_plane, S far_plane, S radius_clip) {
  Camera<S> cam;
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) cam.R[3 * i + j] = viewmat[4 * i + j];
    cam.t[i] = viewmat[4 * i + 3];
  }
  cam.fx = K[0];
  cam.fy = K[4];
  cam.cx = K[2];
  cam.cy = K[5];
  cam.width = S(width);
  cam.height = S(height);
  const S margin = S(kFieldOfViewMargin);
  cam.slope_x_hi = (cam.width - cam.cx + margin * cam.width) / cam.fx;
  cam.slope_x_lo = -(cam.cx + margin * cam.width) / cam.fx;
  cam.slope_y_hi = (cam.height - cam.cy + margin * cam.height) / cam.fy;
  cam.slope_y_lo = -(cam.cy + margin * cam.height) / cam.fy;
  cam.eps2d = eps2d;
  cam.near_plane = near_plane;
  cam.far_plane = far_plane;
  cam.radius_clip = radius_clip;
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

// Everything of the projection that both directions need.
template <class V>
struct View {
  V x, y, z, inverse_z;  // camera coordinates
  V slope_x, slope_y;    // x/z, y/z as the Jacobian uses them (clamped)
  V j00, j02, j11, j12;  // Jacobian of the pinhole projection
  V cov[6];              // covariance in camera axes
  V s00, s01, s11;       // 2-D covariance with eps2d on its diagonal
};

template <class V, class S>
PYEXT_HD View<V> view(const Camera<S>& cam, const V mean[3], const V cov[6]) {
  View<V> p;
  const S* R = cam.R;
  p.x = V(R[0]) * mean[0] + V(R[1]) * mean[1] + V(R[2]) * mean[2] + V(cam.t[0]);
  p.y = V(R[3]) * mean[0] + V(R[4]) * mean[1] + V(R[5]) * mean[2] + V(cam.t[1]);
  p.z = V(R[6]) * mean[0] + V(R[7]) * mean[1] + V(R[8]) * mean[2] + V(cam.t[2]);
  rotate_symmetric(R, cov, p.cov);
  p.inverse_z = V(1) / p.z;
  p.slope_x = vmin(vmax(p.x * p.inverse_z, V(cam.slope_x_lo)), V(cam.slope_x_hi));
  p.slope_y = vmin(vmax(p.y * p.inverse_z, V(cam.slope_y_lo)), V(cam.slope_y_hi));
  p.j00 = V(cam.fx) * p.inverse_z;
  p.j11 = V(cam.fy) * p.inverse_z;
  p.j02 = -(p.j00 * p.slope_x);
  p.j12 = -(p.j11 * p.slope_y);
  const V* c = p.cov;
  const V two = V(2);
  p.s00 = p.j00 * p.j00 * c[0] + two * p.j00 * p.j02 * c[2] + p.j02 * p.j02 * c[5] + V(cam.eps2d);
  p.s11 = p.j11 * p.j11 * c[3] + two * p.j11 * p.j12 * c[4] + p.j12 * p.j12 * c[5] + V(cam.eps2d);
  p.s01 = p.j00 * (p.j11 * c[1] + p.j12 * c[2]) + p.j02 * (p.j11 * c[4] + p.j12 * c[5]);
  return p;
}

template <class V>
struct Projected {
  V u, v, depth;
  V a, b, c;             // conic
  V radius_x, radius_y;  // whole numbers; both 0 where culled, as is everything else
};

// One Gaussian through one camera. Comparisons are written so that not-a-number is culled.
template <class V, class S>
PYEXT_HD Projected<V> project(const Camera<S>& cam, const V mean[3], const V cov[6], V opacity) {
  const View<V> p = view(cam, mean, cov);
  Projected<V> out;
  const V zero = V(0);
  const V det = p.s00 * p.s11 - p.s01 * p.s01;
  const V inverse_det = V(1) / det;
  const V level = V(2) * vlog(opacity * V(S(1.0 / kAlphaMin)));
  const V a = p.s11 * inverse_det, b = -(p.s01 * inverse_det), c = p.s00 * inverse_det;
  const V extent = vmin(V(S(kExtentMax)), vsqrt(vmax(level, zero)));
  const V rx = vceil(extent * vsqrt(p.s00));
  const V ry = vceil(extent * vsqrt(p.s11));
  const V u = V(cam.fx) * p.x * p.inverse_z + V(cam.cx);
  const V v = V(cam.fy) * p.y * p.inverse_z + V(cam.cy);
  auto keep = (p.z >= V(cam.near_plane)) & (p.z <= V(cam.far_plane)) & (det > zero) &
              (opacity >= V(S(kAlphaMin)));
  keep = keep & ((rx > V(cam.radius_clip)) | (ry > V(cam.radius_clip)));
  keep =
      keep & (u + rx > zero) & (u - rx < V(cam.width)) & (v + ry > zero) & (v - ry < V(cam.height));
  // Also culls what overflowed: infinite variances give a conic that is not a number.
  keep = keep & (a >= zero) & (c >= zero);
  out.u = select(keep, u, zero);
  out.v = select(keep, v, zero);
  out.depth = select(keep, p.z, zero);
  out.a = select(keep, a, zero);
  out.b = select(keep, b, zero);
  out.c = select(keep, c, zero);
  // Radii go to 32-bit integers; a box of 2^30 pixels covers any image.
  const V widest = V(S(1 << 30));
  out.radius_x = select(keep, vmin(rx, widest), zero);
  out.radius_y = select(keep, vmin(ry, widest), zero);
  return out;
}

template <class V>
struct ProjectGrad {
  V mean[3], cov[6];  // to the world-space inputs
  V R[9], t[3];       // to the camera's rotation and translation
};

// Gradient of `project` for one visible Gaussian; g_u, g_v, g_z and the conic's g_a, g_b, g_c come
// from the compositor.
template <class V, class S>
PYEXT_HD ProjectGrad<V> project_backward(const Camera<S>& cam, const V mean[3], const V cov[6],
                                         V g_u, V g_v, V g_z, V g_a, V g_b, V g_c) {
  const View<V> p = view(cam, mean, cov);
  const V half = V(S(0.5)), two = V(2), zero = V(0);
  const V inverse_det = V(1) / (p.s00 * p.s11 - p.s01 * p.s01);
  const V a = p.s11 * inverse_det, b = -(p.s01 * inverse_det), c = p.s00 * inverse_det;
  // G = -P W P with W = [[g_a, g_b / 2], [g_b / 2, g_c]].
  const V w01 = half * g_b;
  const V pw00 = a * g_a + b * w01, pw01 = a * w01 + b * g_c;
  const V pw10 = b * g_a + c * w01, pw11 = b * w01 + c * g_c;
  const V g00 = -(pw00 * a + pw01 * b);
  const V g01 = -(pw00 * b + pw01 * c);
  const V g11 = -(pw10 * b + pw11 * c);
  // To the covariance in camera axes: J^T G J, as upper triangle of the symmetric matrix.
  V s[6];
  s[0] = p.j00 * p.j00 * g00;
  s[1] = p.j00 * p.j11 * g01;
  s[2] = p.j00 * (p.j02 * g00 + p.j12 * g01);
  s[3] = p.j11 * p.j11 * g11;
  s[4] = p.j11 * (p.j02 * g01 + p.j12 * g11);
  s[5] = p.j02 * p.j02 * g00 + two * p.j02 * p.j12 * g01 + p.j12 * p.j12 * g11;
  // To the Jacobian: 2 G J cov.
  const V* k = p.cov;
  const V r00 = p.j00 * k[0] + p.j02 * k[2], r01 = p.j00 * k[1] + p.j02 * k[4];
  const V r02 = p.j00 * k[2] + p.j02 * k[5];
  const V r10 = p.j11 * k[1] + p.j12 * k[2], r11 = p.j11 * k[3] + p.j12 * k[4];
  const V r12 = p.j11 * k[4] + p.j12 * k[5];
  const V gj00 = two * (g00 * r00 + g01 * r10), gj02 = two * (g00 * r02 + g01 * r12);
  const V gj11 = two * (g01 * r01 + g11 * r11), gj12 = two * (g01 * r02 + g11 * r12);
  // To the camera-space mean. Where the slope is clamped it no longer moves with x or y, and
  // j02 = -fx slope / z keeps one factor 1/z instead of two.
  const V iz = p.inverse_z;
  const V true_x = p.x * iz, true_y = p.y * iz;
  const auto inside_x = (true_x >= V(cam.slope_x_lo)) & (true_x <= V(cam.slope_x_hi));
  const auto inside_y = (true_y >= V(cam.slope_y_lo)) & (true_y <= V(cam.slope_y_hi));
  V g_mu[3];
  g_mu[0] = p.j00 * g_u - select(inside_x, p.j00 * iz * gj02, zero);
  g_mu[1] = p.j11 * g_v - select(inside_y, p.j11 * iz * gj12, zero);
  const V slopes =
      p.j02 * gj02 * select(inside_x, two, V(1)) + p.j12 * gj12 * select(inside_y, two, V(1));
  g_mu[2] = g_z - (p.j00 * true_x * g_u + p.j11 * true_y * g_v) -
            iz * (p.j00 * gj00 + p.j11 * gj11 + slopes);

  ProjectGrad<V> out;
  const S* R = cam.R;
  const S Rt[9] = {R[0], R[3], R[6], R[1], R[4], R[7], R[2], R[5], R[8]};
  V full[6];
  rotate_symmetric(Rt, s, full);
  out.cov[0] = full[0];
  out.cov[1] = two * full[1];
  out.cov[2] = two * full[2];
  out.cov[3] = full[3];
  out.cov[4] = two * full[4];
  out.cov[5] = full[5];
  const V S3[9] = {s[0], s[1], s[2], s[1], s[3], s[4], s[2], s[4], s[5]};
  const V W3[9] = {cov[0], cov[1], cov[2], cov[1], cov[3], cov[4], cov[2], cov[4], cov[5]};
  V RW[9];
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j)
      RW[3 * i + j] =
          V(R[3 * i]) * W3[j] + V(R[3 * i + 1]) * W3[3 + j] + V(R[3 * i + 2]) * W3[6 + j];
  for (int i = 0; i < 3; ++i) {
    out.t[i] = g_mu[i];
    out.mean[i] = V(R[i]) * g_mu[0] + V(R[3 + i]) * g_mu[1] + V(R[6 + i]) * g_mu[2];
    for (int j = 0; j < 3; ++j)
      out.R[3 * i + j] = g_mu[i] * mean[j] + two * (S3[3 * i] * RW[j] + S3[3 * i + 1] * RW[3 + j] +
                                                    S3[3 * i + 2] * RW[6 + j]);
  }
  return out;
}

}  // namespace pyext::splat
