// Tile lists without a global sort: Gaussians are visited front to back, so every tile's list comes
// out sorted.
#pragma once

#include <cstring>
#include <type_traits>

#include "core/isa_namespace.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "splat/tiles.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::splat;

// A Gaussian by depth: positive floats order like their bits.
template <class T>
struct DepthKey {
  using Bits = std::make_unsigned_t<typename IntOf<T>::type>;
  Bits bits;
  int32_t index;
  DepthKey(T depth, int64_t index_) : index(int32_t(index_)) { memcpy(&bits, &depth, sizeof bits); }
};

// Stable radix sort, 11 bits a pass; the result is in `keys`.
template <class T>
void sort_by_depth(DepthKey<T>* keys, DepthKey<T>* spare, int64_t count) {
  constexpr int kBits = 11;
  constexpr int kBuckets = 1 << kBits;
  DepthKey<T>* from = keys;
  DepthKey<T>* to = spare;
  for (int shift = 0; shift < int(8 * sizeof(T)); shift += kBits) {
    int64_t start[kBuckets] = {};
    for (int64_t i = 0; i < count; ++i) ++start[from[i].bits >> shift & (kBuckets - 1)];
    int64_t total = 0;
    for (int64_t& s : start) {
      const int64_t size = s;
      s = total;
      total += size;
    }
    for (int64_t i = 0; i < count; ++i)
      to[start[from[i].bits >> shift & (kBuckets - 1)]++] = from[i];
    DepthKey<T>* swap = from;
    from = to;
    to = swap;
  }
  if (from != keys) memcpy(keys, from, size_t(count) * sizeof(DepthKey<T>));
}

// order[0..N) of one image: visible Gaussians front to back, then the others by index.
template <class T>
void order_image(const BinArgs<T>& args, int64_t image, DepthKey<T>* keys) {
  const int64_t n = args.gaussians, base = image * n;
  int32_t* order = args.order + base;
  int64_t visible = 0, hidden = n;
  for (int64_t i = 0; i < n; ++i)
    if (args.radii[2 * (base + i)] > 0 && args.radii[2 * (base + i) + 1] > 0)
      keys[visible++] = DepthKey<T>(args.depths[base + i], base + i);
  for (int64_t i = n - 1; i >= 0; --i)
    if (!(args.radii[2 * (base + i)] > 0 && args.radii[2 * (base + i) + 1] > 0))
      order[--hidden] = int32_t(base + i);
  sort_by_depth(keys, keys + n, visible);
  for (int64_t i = 0; i < visible; ++i) order[i] = keys[i].index;
}

// Neighbouring tiles in one row of them.
struct TileRun {
  int32_t first, count;
};

// The steps of `bin`. Contiguous parts of the depth order count their tiles, then fill them: part p
// of a tile's list follows part p - 1, so the lists do not depend on the number of parts.
template <class T>
struct Binning {
  const BinArgs<T>& args;
  const Context& context;
  int32_t tiles_x, tiles_y;
  int64_t tiles, ranks;
  int64_t parts;        // several per thread: those at the end of an image are all hidden
  int64_t* run_starts;  // [parts + 1]: where each part's runs begin
  TileRun* runs;        // what counting found, so that an ellipse is walked once
  int64_t* cursor;      // [parts, tiles]: entries counted, then where the next one goes

  Binning(const BinArgs<T>& args_, const Context& context_) : args(args_), context(context_) {
    tiles_x = (args.width + kTile - 1) / kTile;
    tiles_y = (args.height + kTile - 1) / kTile;
    tiles = args.images * tiles_x * tiles_y;
    ranks = args.images * args.gaussians;
    parts = thread_count() == 1 ? 1 : 4 * thread_count();
    run_starts = scratch<int64_t>(parts + 1);
    cursor = scratch<int64_t>(parts * tiles);
    memset(cursor, 0, size_t(parts * tiles) * sizeof(int64_t));
  }

  template <class U>
  U* scratch(int64_t count) const {
    return static_cast<U*>(context.scratch(context.owner, count * int64_t(sizeof(U))));
  }

  template <class Body>
  void for_each_rank(int64_t part, Body body) const {
    for (int64_t r = ranks * part / parts; r < ranks * (part + 1) / parts; ++r) body(r);
  }

  void order_images() const {
    auto* keys = scratch<DepthKey<T>>(thread_count() * 2 * args.gaussians);
    auto task = [&](int64_t image, int worker) {
      order_image(args, image, keys + worker * 2 * args.gaussians);
    };
    parallel_tasks(args.images, task);
  }

  // Room for as many runs as the bounding boxes have rows.
  void reserve_runs() {
    auto task = [&](int64_t part, int) {
      int64_t rows = 0;
      for_each_rank(part, [&](int64_t r) {
        int32_t lo, hi;
        tile_rows(args, tiles_y, args.order[r], &lo, &hi);
        rows += hi - lo;
      });
      run_starts[part + 1] = rows;
    };
    parallel_tasks(parts, task);
    run_starts[0] = 0;
    for (int64_t part = 0; part < parts; ++part) run_starts[part + 1] += run_starts[part];
    runs = scratch<TileRun>(run_starts[parts]);
  }

  void count() const {
    auto task = [&](int64_t part, int) {
      int64_t* counts = cursor + part * tiles;
      TileRun* run = runs + run_starts[part];
      for_each_rank(part, [&](int64_t r) {
        int64_t reached = 0;
        for_each_tile_run(args, tiles_x, tiles_y, args.order[r], [&](int64_t first, int32_t count) {
          for (int32_t x = 0; x < count; ++x) ++counts[first + x];
          reached += count;
          *run++ = {int32_t(first), count};
        });
        args.starts[r + 1] = reached;
      });
    };
    parallel_tasks(parts, task);
  }

  // Turns counts into offsets; returns the number of entries.
  int64_t accumulate() const {
    args.starts[0] = 0;
    for (int64_t r = 0; r < ranks; ++r) args.starts[r + 1] += args.starts[r];
    int64_t total = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      args.tile_offsets[tile] = total;
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t size = cursor[part * tiles + tile];
        cursor[part * tiles + tile] = total;
        total += size;
      }
    }
    args.tile_offsets[tiles] = total;
    return total;
  }

  void fill(int32_t* tile_ids, int32_t* entries_of) const {
    auto task = [&](int64_t part, int) {
      int64_t* next = cursor + part * tiles;
      const TileRun* run = runs + run_starts[part];
      for_each_rank(part, [&](int64_t r) {
        const int32_t id = args.order[r];
        for (int64_t entry = args.starts[r]; entry < args.starts[r + 1]; ++run)
          for (int32_t x = 0; x < run->count; ++x) {
            const int64_t at = next[run->first + x]++;
            tile_ids[at] = id;
            entries_of[entry++] = int32_t(at);
          }
      });
    };
    parallel_tasks(parts, task);
  }
};

template <class T>
void bin(const BinArgs<T>& args, const Context& context) {
  Binning<T> binning(args, context);
  binning.order_images();
  binning.reserve_runs();
  binning.count();
  int32_t *tile_ids, *entries_of;
  args.allocate(args.owner, binning.accumulate(), &tile_ids, &entries_of);
  binning.fill(tile_ids, entries_of);
}

}  // namespace pyext::PYEXT_ISA
