// Colours from spherical harmonics, sixteen Gaussians at a time.
#pragma once

#include "core/simd_rows.h"
#include "splat/cpu/gaussians.h"
#include "splat/kernels.h"
#include "splat/sh.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::splat;

// Directions, bases and visibility of sixteen Gaussians from one camera.
template <int Degree, class T>
struct ShGroup {
  static constexpr int kBases = sh_bases_of(Degree);
  using V = Lanes<T>;
  Mask<T> visible;
  Direction<V> direction;
  V bases[kBases];

  PYEXT_INLINE ShGroup(const ShArgs<T>& args, int64_t batch, int64_t image, int64_t n, int count)
      : visible(visible_lanes<T>(
            args.radii ? args.radii + 2 * (image * args.gaussians + n) : nullptr, count)),
        direction(direction_of(args, batch, image, n, count)) {
    // A culled Gaussian may be anywhere, not a number included; what it adds must be zero.
    for (V& x : direction.d) x = select(visible, x, V(T(0)));
    sh_bases<Degree>(direction.d[0], direction.d[1], direction.d[2], bases);
  }

 private:
  static PYEXT_INLINE Direction<V> direction_of(const ShArgs<T>& args, int64_t batch, int64_t image,
                                                int64_t n, int count) {
    V mean[3], centre[3];
    load_rows<3>(args.means + 3 * (batch * args.gaussians + n), count, mean);
    for (int i = 0; i < 3; ++i) centre[i] = V(args.centres[3 * image + i]);
    return Direction<V>(mean, centre);
  }
};

// Values of one Gaussian are [basis, channel]. Calls body(offset, width, basis, channel) for blocks
// of at most sixteen of them that lie side by side, the first one of that basis and channel: of all
// channels if they are few, else of the sixteen from `first` on.
template <class Body>
PYEXT_INLINE void for_each_block(int bases, int64_t channels, int64_t first, Body body) {
  if (channels <= kLanes) {
    const int values = bases * int(channels);
    for (int i = 0; i < values; i += kLanes)
      body(i, values - i < kLanes ? values - i : kLanes, i / int(channels), i % int(channels));
    return;
  }
  const int width = int(channels - first < kLanes ? channels - first : kLanes);
  for (int k = 0; k < bases; ++k) body(k * channels + first, width, k, 0);
}

// Calls body(first, width) for sixteen channels at a time.
template <class Body>
PYEXT_INLINE void for_each_channels(int64_t channels, Body body) {
  for (int64_t first = 0; first < channels; first += kLanes)
    body(first, int(channels - first < kLanes ? channels - first : kLanes));
}

template <class T>
int64_t coefficients_at(const ShArgs<T>& args, int64_t batch, int64_t image, int64_t n) {
  return ((args.shared ? batch : image) * args.gaussians + n) * args.coefficients * args.channels;
}

template <int Degree, class T>
void sh_group(const ShArgs<T>& args, int64_t batch, int64_t image, int64_t n, int count) {
  using V = Lanes<T>;
  const ShGroup<Degree, T> g(args, batch, image, n, count);
  const int64_t row = args.coefficients * args.channels;
  const T* coeffs = args.coeffs + coefficients_at(args, batch, image, n);
  T* colours = args.colours + (image * args.gaussians + n) * args.channels;
  for_each_channels(args.channels, [&](int64_t first, int wide) {
    V sums[kLanes], block[kLanes];
    for (V& x : sums) x = V(T(0));
    const auto add = [&](int64_t offset, int width, int basis, int channel) {
      load_block(coeffs + offset, row, width, count, block);
      for (int i = 0; i < width; ++i) {
        sums[channel] = fma(g.bases[basis], block[i], sums[channel]);
        if (++channel == wide) channel = 0, ++basis;
      }
    };
    if (g.visible.any()) for_each_block(g.kBases, args.channels, first, add);
    for (int k = 0; k < wide; ++k) sums[k] = select(g.visible, sums[k], V(T(0)));
    store_block(sums, colours + first, args.channels, wide, count);
  });
}

template <class T>
void sh(const ShArgs<T>& args, const Context&) {
  with_degree(args.degree, [&](auto degree) {
    for_each_chunk(
        args.batches, args.gaussians, [&](int64_t batch, int64_t, int64_t first, int64_t last) {
          for (int64_t c = 0; c < args.cameras; ++c)
            for_each_group(first, last, [&](int64_t n, int count) {
              sh_group<decltype(degree)::value>(args, batch, batch * args.cameras + c, n, count);
            });
        });
  });
}

// One camera's share for sixteen Gaussians: written to g_coeffs, or added for all cameras but the
// first of shared coefficients; added to g_mean and to g_centre [3], which is summed over them.
template <int Degree, class T>
void sh_backward_group(const ShBackwardArgs<T>& args, int64_t batch, int64_t image, int64_t n,
                       int count, bool add, Lanes<T> g_mean[3], T* g_centre) {
  using V = Lanes<T>;
  const ShArgs<T>& f = args.forward;
  const ShGroup<Degree, T> g(f, batch, image, n, count);
  if (add && !g.visible.any()) return;
  const int64_t row = f.coefficients * f.channels, at = coefficients_at(f, batch, image, n);
  const T* upstream = args.g_colours + (image * f.gaussians + n) * f.channels;
  V weights[g.kBases];  // of the bases' own gradients
  for (V& x : weights) x = V(T(0));
  for_each_channels(f.channels, [&](int64_t first, int wide) {
    V g_colour[kLanes], block[kLanes], g_block[kLanes];
    load_block(upstream + first, f.channels, wide, count, g_colour);
    for (int k = 0; k < wide; ++k) g_colour[k] = select(g.visible, g_colour[k], V(T(0)));
    for_each_block(g.kBases, f.channels, first,
                   [&](int64_t offset, int width, int basis, int channel) {
                     load_block(f.coeffs + at + offset, row, width, count, block);
                     if (add) load_block(args.g_coeffs + at + offset, row, width, count, g_block);
                     for (int i = 0; i < width; ++i) {
                       const V share = g.bases[basis] * g_colour[channel];
                       g_block[i] = add ? g_block[i] + share : share;
                       weights[basis] = fma(block[i], g_colour[channel], weights[basis]);
                       if (++channel == wide) channel = 0, ++basis;
                     }
                     store_block(g_block, args.g_coeffs + at + offset, row, width, count);
                   });
  });
  V g_unit[3], g_offset[3];
  const V* d = g.direction.d;
  sh_backward<Degree>(d[0], d[1], d[2], weights, g_unit);
  g.direction.backward(g_unit, g_offset);
  T sums[3];
  for (V& x : g_offset) x = select(g.visible, x, V(T(0)));
  sum_each<3>(g_offset, sums);
  for (int i = 0; i < 3; ++i) {
    g_mean[i] = g_mean[i] + g_offset[i];
    g_centre[i] -= sums[i];
  }
}

// All cameras for one chunk of Gaussians. centres [C, 3] receives the chunk's sums.
template <int Degree, class T>
void sh_backward_chunk(const ShBackwardArgs<T>& args, int64_t batch, int64_t first, int64_t last,
                       T* centres) {
  const ShArgs<T>& f = args.forward;
  for (int64_t i = 0; i < 3 * f.cameras; ++i) centres[i] = T(0);
  for_each_group(first, last, [&](int64_t n, int count) {
    Lanes<T> g_mean[3];
    for (Lanes<T>& x : g_mean) x = Lanes<T>(T(0));
    for (int64_t c = 0; c < f.cameras; ++c)
      sh_backward_group<Degree>(args, batch, batch * f.cameras + c, n, count, f.shared && c > 0,
                                g_mean, centres + 3 * c);
    store_rows<3>(g_mean, args.g_means + 3 * (batch * f.gaussians + n), count);
  });
}

template <class T>
void sh_backward(const ShBackwardArgs<T>& args, const Context& context) {
  const ShArgs<T>& f = args.forward;
  const int64_t chunks = chunks_of(f.gaussians), per_chunk = f.cameras * 3;
  T* shares = static_cast<T*>(
      context.scratch(context.owner, f.batches * chunks * per_chunk * int64_t(sizeof(T))));
  with_degree(f.degree, [&](auto degree) {
    for_each_chunk(f.batches, f.gaussians,
                   [&](int64_t batch, int64_t chunk, int64_t first, int64_t last) {
                     sh_backward_chunk<decltype(degree)::value>(args, batch, first, last,
                                                                shares + chunk * per_chunk);
                   });
  });
  for (int64_t image = 0; image < f.batches * f.cameras; ++image)
    sum_chunks<3>(shares, chunks, f.cameras, image, args.g_centres + 3 * image);
}

}  // namespace pyext::PYEXT_ISA
