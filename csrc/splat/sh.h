// Real spherical harmonics up to degree 4 and their gradients, for every backend; V as in math.h.
//
// With (x + iy)^m = c_m + i s_m and Q_lm the m-th derivative of the Legendre polynomial P_l, the
// bases on the unit sphere are
//   B[l^2 + l + m] = N_lm Q_lm(z) c_m,   B[l^2 + l - m] = N_lm Q_lm(z) s_m,   m = 0 .. l,
// in the order and with the signs of Kerbl et al. 2023. No polynomial is written out: Q follows
// from Legendre's recurrence, and its derivative in z is Q_l,m+1.
#pragma once

#include <type_traits>

#include "core/scalar.h"

namespace pyext::splat {

constexpr int kShDegreeMax = 4;

// Calls body(Degree) with the degree as an integral constant.
template <class Body>
void with_degree(int degree, Body body) {
  switch (degree) {
    case 0:
      return body(std::integral_constant<int, 0>());
    case 1:
      return body(std::integral_constant<int, 1>());
    case 2:
      return body(std::integral_constant<int, 2>());
    case 3:
      return body(std::integral_constant<int, 3>());
    default:
      return body(std::integral_constant<int, 4>());
  }
}

PYEXT_HD constexpr int sh_bases_of(int degree) { return (degree + 1) * (degree + 1); }

// Where (l, m), m >= 0, stands in a triangle.
PYEXT_HD constexpr int sh_at(int l, int m) { return l * (l + 1) / 2 + m; }

// (-1)^m sqrt((2 - [m = 0]) (2 l + 1) / (4 pi) (l - m)! / (l + m)!)
PYEXT_HD constexpr double sh_norm(int l, int m) {
  const double norms[] = {0.28209479177387814, 0.4886025119029199,    -0.4886025119029199,
                          0.6307831305050401,  -0.3641828101973597,   0.18209140509867985,
                          0.7463526651802308,  -0.3046971996429772,   0.09635371475468514,
                          -0.0393362393284429, 0.8462843753216345,    -0.26761861742291565,
                          0.063078313050504,   -0.016858388283618388, 0.005960340337611202};
  return norms[sh_at(l, m)];
}

// Q_lm, c_m and s_m at one direction.
template <int Degree, class V>
struct ShFactors {
  V Q[sh_at(Degree, Degree) + 1], c[Degree + 1], s[Degree + 1];

  PYEXT_HD ShFactors(V x, V y, V z) {
    c[0] = Q[0] = V(1);
    s[0] = V(0);
    PYEXT_UNROLL
    for (int l = 1; l <= Degree; ++l) {
      c[l] = x * c[l - 1] - y * s[l - 1];
      s[l] = x * s[l - 1] + y * c[l - 1];
      Q[sh_at(l, l)] = V(2 * l - 1) * Q[sh_at(l - 1, l - 1)];
      Q[sh_at(l, l - 1)] = z * Q[sh_at(l, l)];
      // (l - m) Q_lm = (2 l - 1) z Q_l-1,m - (l + m - 1) Q_l-2,m
      PYEXT_UNROLL
      for (int m = 0; m <= l - 2; ++m)
        Q[sh_at(l, m)] = V((2 * l - 1.0) / (l - m)) * z * Q[sh_at(l - 1, m)] -
                         V((l + m - 1.0) / (l - m)) * Q[sh_at(l - 2, m)];
    }
  }
};

// The (Degree + 1)^2 bases at the unit direction (x, y, z).
template <int Degree, class V>
PYEXT_HD void sh_bases(V x, V y, V z, V* bases) {
  const ShFactors<Degree, V> f(x, y, z);
  PYEXT_UNROLL
  for (int l = 0; l <= Degree; ++l) {
    bases[l * l + l] = V(sh_norm(l, 0)) * f.Q[sh_at(l, 0)];
    PYEXT_UNROLL
    for (int m = 1; m <= l; ++m) {
      const V height = V(sh_norm(l, m)) * f.Q[sh_at(l, m)];
      bases[l * l + l + m] = height * f.c[m];
      bases[l * l + l - m] = height * f.s[m];
    }
  }
}

// Gradient of sum_k weights[k] B_k to the direction, one of those that agree along the sphere.
template <int Degree, class V>
PYEXT_HD void sh_backward(V x, V y, V z, const V* weights, V g[3]) {
  const ShFactors<Degree, V> f(x, y, z);
  g[0] = g[1] = g[2] = V(0);
  PYEXT_UNROLL
  for (int l = 1; l <= Degree; ++l) {
    g[2] = g[2] + V(sh_norm(l, 0)) * f.Q[sh_at(l, 1)] * weights[l * l + l];
    PYEXT_UNROLL
    for (int m = 1; m <= l; ++m) {
      const V even = weights[l * l + l + m], odd = weights[l * l + l - m];
      const V norm = V(sh_norm(l, m)), height = V(m) * norm * f.Q[sh_at(l, m)];
      g[0] = g[0] + height * (even * f.c[m - 1] + odd * f.s[m - 1]);
      g[1] = g[1] + height * (odd * f.c[m - 1] - even * f.s[m - 1]);
      if (m < l) g[2] = g[2] + norm * f.Q[sh_at(l, m + 1)] * (even * f.c[m] + odd * f.s[m]);
    }
  }
}

// Unit direction from a camera's centre to a Gaussian. From a point to itself it is 0, as is its
// gradient.
template <class V>
struct Direction {
  V d[3], inverse_norm;

  PYEXT_HD Direction(const V mean[3], const V centre[3]) {
    for (int i = 0; i < 3; ++i) d[i] = mean[i] - centre[i];
    const V squared = d[0] * d[0] + d[1] * d[1] + d[2] * d[2];
    inverse_norm = select(squared > V(0), V(1) / vsqrt(squared), V(0));
    for (int i = 0; i < 3; ++i) d[i] = d[i] * inverse_norm;
  }

  // From the unit direction to mean - centre: (I - d d^T) g / norm.
  PYEXT_HD void backward(const V g[3], V out[3]) const {
    const V along = d[0] * g[0] + d[1] * g[1] + d[2] * g[2];
    for (int i = 0; i < 3; ++i) out[i] = (g[i] - along * d[i]) * inverse_norm;
  }
};

}  // namespace pyext::splat
