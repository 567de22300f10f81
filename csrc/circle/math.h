// What one pair of vectors computes from its inner products: the weights of a point on its circle.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/macros.h"

namespace pyext::circle {

// How a point is made of a and b. Circles by an angle phi: through a and b as they are (paper),
// through their directions at their root mean square length (unit), or cos(phi) a + sin(phi) b
// (gauss). Segments by a share lambda: straight (lerp), or along the arc from a to b (slerp).
enum class Norm { paper, unit, gauss, lerp, slerp };

// Why a pair has no circle: bits of its status. Such a pair gives its first vector.
constexpr uint8_t kZero = 1, kParallel = 2, kAntipodal = 4, kNotFinite = 8, kOutside = 16;

struct Gram {
  double aa, bb, ab;
};

// The angle alpha between the vectors, by its cosine and sine: no arc cosine, which loses half the
// digits of a small angle.
struct Angle {
  double c, s;
  PYEXT_HD explicit Angle(const Gram& g) {
    c = g.ab / (sqrt(g.aa) * sqrt(g.bb));
    const double square = (1.0 - c) * (1.0 + c);
    s = sqrt(square > 0.0 ? square : 0.0);
  }
  PYEXT_HD double radians() const { return atan2(s, c); }
};

PYEXT_HD bool has_circle_through_both(Norm norm) {
  return norm == Norm::paper || norm == Norm::unit || norm == Norm::slerp;
}

PYEXT_HD uint8_t status_of(Norm norm, const Gram& g, double min_sin) {
  if (!(g.aa - g.aa == 0.0 && g.bb - g.bb == 0.0 && g.ab - g.ab == 0.0)) return kNotFinite;
  if (!has_circle_through_both(norm)) return 0;
  if (!(g.aa > 0.0 && g.bb > 0.0)) return kZero;
  const Angle angle(g);
  if (angle.s >= min_sin) return 0;
  return angle.c > 0.0 ? kParallel : kAntipodal;
}

// z = first a + second b.
struct Weights {
  double first, second;
};

// Lengths of a and b as `unit` scales them: to sqrt((|a|^2 + |b|^2) / 2) both.
PYEXT_HD Weights unit_scales(const Gram& g) {
  const double square = 0.5 * (g.aa + g.bb);
  return {sqrt(square / g.aa), sqrt(square / g.bb)};
}

// A point of the circle through a and b, phi radians before a: sin(alpha + phi) / sin(alpha) and
// -sin(phi) / sin(alpha), without the cancellation in the first.
PYEXT_HD Weights point_at(const Angle& angle, double phi) {
  const double sine = sin(phi);
  return {cos(phi) + sine * (angle.c / angle.s), -sine / angle.s};
}

// The weights for an angle, or for a share: slerp goes backwards by a share of alpha.
PYEXT_HD Weights weights_of(Norm norm, const Gram& g, double angle) {
  if (norm == Norm::lerp) return {1.0 - angle, angle};
  if (norm == Norm::gauss) return {cos(angle), sin(angle)};
  const Angle alpha(g);
  if (norm == Norm::slerp) return point_at(alpha, -angle * alpha.radians());
  const Weights point = point_at(alpha, angle);
  if (norm == Norm::paper) return point;
  const Weights scale = unit_scales(g);
  return {scale.first * point.first, scale.second * point.second};
}

// Gradients of a pair that its inner products carry: g_a += own_a a + across b, and
// g_b += own_b b + across a.
struct Through {
  double own_a, own_b, across;
};

// Sums over a pair's angles, of which its gradients are made; ga and gb are the products of the
// gradient to a point with a and b.
struct PairSums {
  double cosine = 0.0;  // dL/dc
  double scale_a = 0.0, scale_b = 0.0;

  // Adds one angle's share; returns the gradient to the angle.
  PYEXT_HD double add(Norm norm, const Gram& g, double angle, double ga, double gb) {
    if (norm == Norm::lerp) return gb - ga;
    if (norm == Norm::gauss) return cos(angle) * gb - sin(angle) * ga;
    const Angle alpha(g);
    const bool slerp = norm == Norm::slerp;
    const double phi = slerp ? -angle * alpha.radians() : angle;
    if (norm == Norm::unit) {
      const Weights scale = unit_scales(g), point = point_at(alpha, phi);
      scale_a += point.first * ga;
      scale_b += point.second * gb;
      ga *= scale.first;
      gb *= scale.second;
    }
    const double sine = sin(phi), cosine_phi = cos(phi), s = alpha.s, c = alpha.c;
    cosine += sine * (ga - c * gb) / (s * s * s);
    const double g_phi = (cosine_phi * c / s - sine) * ga - cosine_phi / s * gb;
    if (!slerp) return g_phi;
    cosine += g_phi * angle / s;  // phi = -lambda alpha, and d alpha / dc = -1 / s
    return -alpha.radians() * g_phi;
  }

  PYEXT_HD Through through(Norm norm, const Gram& g) const {
    if (!has_circle_through_both(norm)) return {0.0, 0.0, 0.0};
    const Angle alpha(g);
    Through out{-cosine * alpha.c / g.aa, -cosine * alpha.c / g.bb,
                cosine / (sqrt(g.aa) * sqrt(g.bb))};
    if (norm == Norm::unit) {
      // The scales are sqrt((1 + bb / aa) / 2) and sqrt((1 + aa / bb) / 2).
      const Weights scale = unit_scales(g);
      const double in_a = 0.5 * scale_a / scale.first, in_b = 0.5 * scale_b / scale.second;
      out.own_a += in_b / g.bb - in_a * g.bb / g.aa / g.aa;
      out.own_b += in_a / g.aa - in_b * g.aa / g.bb / g.bb;
    }
    return out;
  }
};

}  // namespace pyext::circle
