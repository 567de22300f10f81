// Pixel values back to Gaussians: sums of weight times value.
//
// A tile is marched as the compositor does it, and fills the slots of its Gaussians. A value is
// only ever multiplied with a weight that is not zero: not-a-number stays with the Gaussians that
// see it.
#pragma once

#include "splat/channels.h"
#include "splat/cpu/composite.h"
#include "splat/cpu/slots.h"
#include "splat/cpu/weights.h"

namespace pyext::PYEXT_ISA {

constexpr int kSlotHead = 2;  // a slot is mass, hits, then the D sums

// Sums of one Gaussian over a tile's pixels, D known when compiled: lanes are pixels of a row.
template <class T, int D>
struct TileValues {
  T* planes;  // [16 rows, D, 16 lanes]
  static int64_t scratch(int64_t) { return kTile * D * kLanes; }

  void load(const UnprojectArgs<T>& args, const TileAt& at) {
    const CompositeArgs<T>& f = args.forward;
    const int columns = f.width - at.x < kTile ? f.width - at.x : kTile;
    for (int r = 0; r < kTile && at.y + r < f.height; ++r) {
      const T* row = args.values + ((at.image * f.height + at.y + r) * f.width + at.x) * D;
      T* plane = planes + r * D * kLanes;
      for (int k = 0; k < D; ++k) load_strided(row + k, D, columns).store(plane + k * kLanes);
    }
  }
  void add(uint32_t rows, const T* weights, bool count, T* sums) const {
    using V = Lanes<T>;
    const V zero(T(0)), one(T(1));
    V sum[D];
    for (int k = 0; k < D; ++k) sum[k] = zero;
    for (; rows; rows &= rows - 1) {
      const int r = __builtin_ctz(rows);
      V weight = V::load(weights + r * kLanes);
      const auto counts = weight > zero;
      if (count) weight = one;
      const T* plane = planes + r * D * kLanes;
      for (int k = 0; k < D; ++k)
        sum[k] = select(counts, fma(weight, V::load(plane + k * kLanes), sum[k]), sum[k]);
    }
    sum_each<D>(sum, sums);
  }
};

// Any number of channels: lanes are channels, pixels come one after another.
template <class T>
struct TileValues<T, 0> {
  T* planes;  // [256 pixels, padded channels]
  int64_t channels, padded;
  static int64_t pad(int64_t channels) { return (channels + kLanes - 1) / kLanes * kLanes; }
  static int64_t scratch(int64_t channels) { return kTile * kTile * pad(channels); }

  void load(const UnprojectArgs<T>& args, const TileAt& at) {
    const CompositeArgs<T>& f = args.forward;
    const int columns = f.width - at.x < kTile ? f.width - at.x : kTile;
    channels = f.channels;
    padded = pad(channels);
    for (int r = 0; r < kTile && at.y + r < f.height; ++r) {
      const T* row = args.values + ((at.image * f.height + at.y + r) * f.width + at.x) * channels;
      for (int i = 0; i < columns; ++i) {
        T* pixel = planes + (r * kTile + i) * padded;
        memcpy(pixel, row + i * channels, size_t(channels) * sizeof(T));
        memset(pixel + channels, 0, size_t(padded - channels) * sizeof(T));
      }
    }
  }
  void add(uint32_t rows, const T* weights, bool count, T* sums) const {
    if (channels == 0) return;
    uint8_t pixel[kTile * kTile];
    T weight[kTile * kTile];
    int pixels = 0;
    for (; rows; rows &= rows - 1) {
      const int r = __builtin_ctz(rows);
      const T* row = weights + r * kLanes;
      for (uint32_t bits = (Lanes<T>::load(row) > Lanes<T>(T(0))).bits(); bits; bits &= bits - 1) {
        const int i = __builtin_ctz(bits);
        pixel[pixels] = uint8_t(r * kTile + i);
        weight[pixels++] = count ? T(1) : row[i];
      }
    }
    int64_t k = 0;
    for (; k + 4 * kLanes <= channels; k += 4 * kLanes) product<4>(pixel, weight, pixels, k, sums);
    for (; k < padded; k += kLanes) product<1>(pixel, weight, pixels, k, sums);
  }

 private:
  // K vectors of channels from k on.
  template <int K>
  PYEXT_INLINE void product(const uint8_t* pixel, const T* weight, int pixels, int64_t k,
                            T* sums) const {
    Lanes<T> sum[K];
    for (Lanes<T>& s : sum) s = Lanes<T>(T(0));
    for (int p = 0; p < pixels; ++p) {
      const Lanes<T> w(weight[p]);
      const T* value = planes + pixel[p] * padded + k;
      for (int i = 0; i < K; ++i) sum[i] = fma(w, Lanes<T>::load(value + i * kLanes), sum[i]);
    }
    for (int i = 0; i < K; ++i) {
      const int64_t left = channels - k - i * kLanes;
      if (left >= kLanes)
        sum[i].store(sums + k + i * kLanes);
      else
        store_strided(sum[i], sums + k, 1, int(left));
    }
  }
};

// slots [entries of the tile, 2 + D] start out zero.
template <class T, int D>
void unproject_tile(const UnprojectArgs<T>& args, const March<T>& f, int64_t tile, T* weights,
                    T* planes, T* slots) {
  const TileAt at = tile_at(tile, f.width, f.height);
  const int64_t begin = f.tile_offsets[tile], stride = kSlotHead + f.channels;
  Row<T> rows[kTile];
  start_rows(f, at, rows);
  if (args.mask) keep_pixels(f, at, args.mask, ~0u, ~0u, rows);
  TileValues<T, D> values{};
  values.planes = planes;
  values.load(args, at);
  for_each_contributor(f, tile, at, rows, weights,
                       [&](int64_t entry, int32_t, uint32_t hit_rows, const T* w) {
                         T* slot = slots + (entry - begin) * stride;
                         int32_t hits;
                         slot[0] = mass_and_hits(hit_rows, w, hits);
                         slot[1] = T(hits);
                         values.add(hit_rows, w, args.count, slot + kSlotHead);
                       });
}

template <class T, int D>
void unproject_as(const UnprojectArgs<T>& args, const Context& context) {
  const March<T> f(args.forward, context);
  const int64_t channels = f.channels, plane = TileValues<T, D>::scratch(channels);
  auto scratch = [&](int64_t count) {
    return static_cast<T*>(context.scratch(context.owner, count * int64_t(sizeof(T))));
  };
  T* weights = scratch(thread_count() * kWeightBlock);
  T* planes = scratch(thread_count() * plane);
  sum_slots<T>(
      {f.tile_offsets, tile_count(f), args.order, f.images * f.gaussians, args.starts,
       args.entries_of},
      kSlotHead + channels, context,
      [&](int64_t tile, int worker, T* slots) {
        unproject_tile<T, D>(args, f, tile, weights + worker * kWeightBlock,
                             planes + worker * plane, slots);
      },
      [&](int64_t id) { __builtin_prefetch(args.sum + id * channels, 1); },
      [&](int64_t id, const T* sums) {
        args.mass[id] += sums[0];
        args.hits[id] += int32_t(sums[1]);
        T* sum = args.sum + id * channels;
        for (int64_t k = 0; k < channels; ++k) sum[k] += sums[kSlotHead + k];
      });
}

template <class T>
void unproject(const UnprojectArgs<T>& args, const Context& context) {
  const int64_t count = args.forward.images * args.forward.gaussians;
  memset(args.mass, 0, size_t(count) * sizeof(T));
  memset(args.hits, 0, size_t(count) * sizeof(int32_t));
  if (args.sum) memset(args.sum, 0, size_t(count * args.forward.channels) * sizeof(T));
  with_channels(args.forward.channels,
                [&](auto d) { unproject_as<T, decltype(d)::value>(args, context); });
}

}  // namespace pyext::PYEXT_ISA
