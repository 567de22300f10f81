// Which tiles of the image one Gaussian reaches.
#pragma once

#include "splat/kernels.h"
#include "splat/math.h"

namespace pyext::splat {

// Where the exponent stays above the cut: a dx^2 + 2 b dx dy + c dy^2 <= level.
template <class S>
struct Ellipse {
  S u, v, b, det, a_level, inverse_a;
  S reach_y;   // half height
  S tip_y;     // dy of the leftmost point; the rightmost is opposite
  bool valid;  // false: degenerate by rounding, taken to reach everywhere
};

template <class S>
PYEXT_HD Ellipse<S> make_ellipse(S u, S v, S a, S b, S c, S level) {
  Ellipse<S> e;
  e.u = u;
  e.v = v;
  e.b = b;
  e.det = a * c - b * b;
  e.valid = e.det > S(0) && level > S(0);
  e.a_level = a * level;
  e.inverse_a = S(1) / a;
  const S inverse_det = S(1) / e.det;
  e.reach_y = vsqrt(e.a_level * inverse_det);
  e.tip_y = b * vsqrt(level / c * inverse_det);
  return e;
}

// Extent in x of the ellipse over the rows y_lo to y_hi, widened by a hundredth of a pixel against
// rounding. False where it misses them.
template <class S>
PYEXT_HD bool x_extent(const Ellipse<S>& e, S y_lo, S y_hi, S* left, S* right) {
  const S slack = S(0.01);
  *left = S(-1e30);
  *right = S(1e30);
  if (!e.valid) return true;
  const S lo = vmax(y_lo - slack - e.v, -e.reach_y), hi = vmin(y_hi + slack - e.v, e.reach_y);
  if (!(lo <= hi)) return false;
  const S y_right = vmin(vmax(-e.tip_y, lo), hi), y_left = vmin(vmax(e.tip_y, lo), hi);
  const S root_right = vsqrt(vmax(e.a_level - e.det * y_right * y_right, S(0)));
  const S root_left = vsqrt(vmax(e.a_level - e.det * y_left * y_left, S(0)));
  *right = e.u + (root_right - e.b * y_right) * e.inverse_a + slack;
  *left = e.u - (root_left + e.b * y_left) * e.inverse_a - slack;
  return true;
}

template <class S>
PYEXT_HD int32_t clamp_tile(S tile, int32_t lo, int32_t hi) {
  return int32_t(vmin(vmax(tile, S(lo)), S(hi)));
}

// The rows of tiles [lo, hi) that the Gaussian's bounding box reaches; none where it is culled.
template <class T>
PYEXT_HD void tile_rows(const BinArgs<T>& args, int32_t tiles_y, int32_t id, int32_t* lo,
                        int32_t* hi) {
  const int32_t radius_x = args.radii[2 * int64_t(id)], radius_y = args.radii[2 * int64_t(id) + 1];
  const T v = args.means2d[2 * int64_t(id) + 1], scale = T(1) / T(kTile);
  const bool visible = radius_x > 0 && radius_y > 0;
  *lo = visible ? clamp_tile((v - T(radius_y)) * scale, 0, tiles_y) : 0;
  *hi = visible ? clamp_tile(vceil((v + T(radius_y)) * scale), 0, tiles_y) : 0;
}

// Calls visit(first, count) for every run of tiles the Gaussian `id` reaches in a row of them, in
// ascending order.
template <class T, class Visit>
PYEXT_HD void for_each_tile_run(const BinArgs<T>& args, int32_t tiles_x, int32_t tiles_y,
                                int32_t id, Visit visit) {
  int32_t y_lo, y_hi;
  tile_rows(args, tiles_y, id, &y_lo, &y_hi);
  if (y_lo >= y_hi) return;
  const int32_t radius_x = args.radii[2 * int64_t(id)];
  const T u = args.means2d[2 * int64_t(id)], v = args.means2d[2 * int64_t(id) + 1];
  const T* conic = args.conics + 3 * int64_t(id);
  const T tile = T(kTile), scale = T(1) / tile, half = T(0.5);
  const int32_t x_lo = clamp_tile((u - T(radius_x)) * scale, 0, tiles_x);
  const int32_t x_hi = clamp_tile(vceil((u + T(radius_x)) * scale), 0, tiles_x);
  const T level = T(2) * vlog(args.opacities[id] * T(1.0 / kAlphaMin));
  const Ellipse<T> ellipse = make_ellipse(u, v, conic[0], conic[1], conic[2], level);
  const int64_t first = id / args.gaussians * int64_t(tiles_x) * tiles_y;
  for (int32_t row = y_lo; row < y_hi; ++row) {
    if (!args.exact) {
      if (x_lo < x_hi) visit(first + int64_t(row) * tiles_x + x_lo, x_hi - x_lo);
      continue;
    }
    T left, right;
    const T y = T(row) * tile + half;
    if (!x_extent(ellipse, y, y + tile - T(1), &left, &right)) continue;
    // The pixel with its centre at j + 0.5 belongs to tile floor(j / kTile).
    const int32_t lo = clamp_tile((left - half) * scale, x_lo, x_hi);
    const int32_t hi = clamp_tile((right - half) * scale + T(1), x_lo, x_hi);
    if (lo < hi) visit(first + int64_t(row) * tiles_x + lo, hi - lo);
  }
}

// Calls visit(tile) for every tile the Gaussian `id` reaches, in ascending order.
template <class T, class Visit>
PYEXT_HD void for_each_tile(const BinArgs<T>& args, int32_t tiles_x, int32_t tiles_y, int32_t id,
                            Visit visit) {
  for_each_tile_run(args, tiles_x, tiles_y, id, [&](int64_t first, int32_t count) {
    for (int32_t x = 0; x < count; ++x) visit(first + x);
  });
}

}  // namespace pyext::splat
