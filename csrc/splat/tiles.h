// Which tiles of the image one Gaussian reaches.
#pragma once

#include <type_traits>

#include "splat/kernels.h"
#include "splat/math.h"

namespace pyext::splat {

// Where the exponent stays above the cut: a dx^2 + 2 b dx dy + c dy^2 <= level. V is a number or a
// vector of them, as in math.h.
template <class V>
struct Ellipse {
  V u, v, b, det, a_level, inverse_a;
  V reach_y;                  // half height
  V tip_y;                    // dy of the leftmost point; the rightmost is opposite
  decltype(V() > V()) valid;  // false: degenerate by rounding, taken to reach everywhere
};

template <class V>
PYEXT_HD Ellipse<V> make_ellipse(V u, V v, V a, V b, V c, V level) {
  Ellipse<V> e;
  e.u = u;
  e.v = v;
  e.b = b;
  e.det = a * c - b * b;
  e.valid = (e.det > V(0)) & (level > V(0));
  e.a_level = a * level;
  e.inverse_a = V(1) / a;
  const V inverse_det = V(1) / e.det;
  e.reach_y = vsqrt(e.a_level * inverse_det);
  e.tip_y = b * vsqrt(level / c * inverse_det);
  return e;
}

// Extent in x of the ellipse over the rows y_lo to y_hi, widened by a hundredth of a pixel against
// rounding. False where it misses them.
template <class V>
PYEXT_HD auto x_extent(const Ellipse<V>& e, V y_lo, V y_hi, V* left, V* right) {
  const V slack = V(0.01), zero = V(0), far = V(1e30);
  const V lo = vmax(y_lo - slack - e.v, -e.reach_y), hi = vmin(y_hi + slack - e.v, e.reach_y);
  if constexpr (std::is_floating_point_v<V>) {  // a thread need not compute what it throws away
    *left = -far;
    *right = far;
    if (!e.valid) return true;
    if (!(lo <= hi)) return false;
  }
  const V y_right = vmin(vmax(-e.tip_y, lo), hi), y_left = vmin(vmax(e.tip_y, lo), hi);
  const V root_right = vsqrt(vmax(e.a_level - e.det * y_right * y_right, zero));
  const V root_left = vsqrt(vmax(e.a_level - e.det * y_left * y_left, zero));
  *right = e.u + (root_right - e.b * y_right) * e.inverse_a + slack;
  *left = e.u - (root_left + e.b * y_left) * e.inverse_a - slack;
  if constexpr (std::is_floating_point_v<V>) {
    return true;
  } else {
    *right = select(e.valid, *right, far);
    *left = select(e.valid, *left, -far);
    return select(e.valid, hi - lo, zero) >= zero;
  }
}

// A Gaussian's box and ellipse among the tiles of its image.
template <class V>
struct Reach {
  V x_lo, x_hi, y_lo, y_hi;  // tiles the bounding box reaches: whole numbers, none where culled
  Ellipse<V> ellipse;
};

template <class V>
PYEXT_HD V clamp(V x, V lo, V hi) {
  return vmin(vmax(x, lo), hi);
}

// Centre, radii in whole pixels, conic (a, b, c), opacity; the image has tiles_x by tiles_y tiles.
template <class V>
PYEXT_HD Reach<V> reach(const V mean[2], const V radius[2], const V conic[3], V opacity, V tiles_x,
                        V tiles_y) {
  const V scale = V(1.0 / kTile), zero = V(0);
  Reach<V> r;
  const auto visible = (radius[0] > zero) & (radius[1] > zero);
  r.x_lo = clamp(vfloor((mean[0] - radius[0]) * scale), zero, tiles_x);
  r.x_hi = clamp(vceil((mean[0] + radius[0]) * scale), zero, tiles_x);
  r.y_lo = clamp(vfloor((mean[1] - radius[1]) * scale), zero, tiles_y);
  r.y_hi = select(visible, clamp(vceil((mean[1] + radius[1]) * scale), zero, tiles_y), r.y_lo);
  const V level = V(2) * vlog(opacity * V(1.0 / kAlphaMin));
  r.ellipse = make_ellipse(mean[0], mean[1], conic[0], conic[1], conic[2], level);
  return r;
}

// The tiles [*lo, *hi) that it reaches in one row of them; none where *lo >= *hi.
template <class V>
PYEXT_HD void tile_run(const Reach<V>& r, bool exact, V row, V* lo, V* hi) {
  *lo = r.x_lo;
  *hi = r.x_hi;
  if (!exact) return;
  const V tile = V(kTile), scale = V(1.0 / kTile), half = V(0.5);
  V left, right;
  const V y = row * tile + half;
  const auto meets = x_extent(r.ellipse, y, y + tile - V(1), &left, &right);
  // The pixel with its centre at j + 0.5 belongs to tile floor(j / kTile).
  *lo = select(meets, clamp(vfloor((left - half) * scale), r.x_lo, r.x_hi), r.x_hi);
  *hi = clamp(vfloor((right - half) * scale) + V(1), r.x_lo, r.x_hi);
}

// Calls visit(tile) for every tile the Gaussian `id` reaches, in ascending order.
template <class T, class Visit>
PYEXT_HD void for_each_tile(const BinArgs<T>& args, int32_t tiles_x, int32_t tiles_y, int32_t id,
                            Visit visit) {
  const T radius[2] = {T(args.radii[2 * int64_t(id)]), T(args.radii[2 * int64_t(id) + 1])};
  const Reach<T> r = reach(args.means2d + 2 * int64_t(id), radius, args.conics + 3 * int64_t(id),
                           args.opacities[id], T(tiles_x), T(tiles_y));
  const int64_t first = id / args.gaussians * int64_t(tiles_x) * tiles_y;
  for (int32_t row = int32_t(r.y_lo); row < int32_t(r.y_hi); ++row) {
    T lo, hi;
    tile_run(r, args.exact, T(row), &lo, &hi);
    for (int32_t x = int32_t(lo); x < int32_t(hi); ++x) visit(first + int64_t(row) * tiles_x + x);
  }
}

}  // namespace pyext::splat
