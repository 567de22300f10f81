// The Gaussians with the largest weights behind each pixel.
#pragma once

#include "splat/cpu/composite.h"
#include "splat/cpu/weights.h"

namespace pyext::PYEXT_ISA {

// Puts a weight in its place among the k largest; of equal ones the first stays in front.
template <class T>
void insert_contributor(const ContributorsArgs<T>& args, int64_t pixel, int32_t index, T weight) {
  T* weights = args.weights + pixel * args.k;
  int32_t* ids = args.ids + pixel * args.k;
  const int64_t held = args.count[pixel] < args.k ? args.count[pixel] : args.k;
  ++args.count[pixel];
  int64_t place = held;
  while (place > 0 && weights[place - 1] < weight) --place;
  if (place == args.k) return;
  for (int64_t i = held < args.k ? held : held - 1; i > place; --i) {
    weights[i] = weights[i - 1];
    ids[i] = ids[i - 1];
  }
  weights[place] = weight;
  ids[place] = index;
}

template <class T>
void clear_pixels(const ContributorsArgs<T>& args, const TileAt& at) {
  const CompositeArgs<T>& f = args.forward;
  const int columns = f.width - at.x < kTile ? f.width - at.x : kTile;
  for (int r = 0; r < kTile && at.y + r < f.height; ++r) {
    const int64_t pixel = (at.image * f.height + at.y + r) * f.width + at.x;
    memset(args.count + pixel, 0, size_t(columns) * sizeof(int32_t));
    memset(args.ids + pixel * args.k, -1, size_t(columns * args.k) * sizeof(int32_t));
    memset(args.weights + pixel * args.k, 0, size_t(columns * args.k) * sizeof(T));
  }
}

template <class T>
void contributors(const ContributorsArgs<T>& args, const Context& context) {
  const March<T> f(args.forward, context);
  auto* weights = static_cast<T*>(
      context.scratch(context.owner, thread_count() * kWeightBlock * int64_t(sizeof(T))));
  for_each_tile_in_parallel(f.tile_offsets, 0, tile_count(f), context, [&](int64_t t, int worker) {
    const TileAt at = tile_at(t, f.width, f.height);
    const int columns = f.width - at.x < kTile ? f.width - at.x : kTile;
    Row<T> rows[kTile];
    clear_pixels(args, at);
    start_rows(f, at, rows);
    for_each_contributor(f, t, at, rows, weights + worker * kWeightBlock,
                         [&](int64_t, int32_t id, uint32_t hit_rows, const T* w) {
                           const int32_t index = int32_t(id - at.image * f.gaussians);
                           for (; hit_rows; hit_rows &= hit_rows - 1) {
                             const int r = __builtin_ctz(hit_rows);
                             const int64_t pixel =
                                 (at.image * f.height + at.y + r) * f.width + at.x;
                             const T* row = w + r * kLanes;
                             for (int i = 0; i < columns; ++i)
                               if (row[i] > T(0))
                                 insert_contributor(args, pixel + i, index, row[i]);
                           }
                         });
  });
}

}  // namespace pyext::PYEXT_ISA
