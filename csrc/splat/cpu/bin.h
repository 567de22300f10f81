// Tile lists without a global sort: Gaussians are visited front to back, so every tile's list comes
// out sorted.
#pragma once

#include <cstring>

#include "core/isa_namespace.h"
#include "splat/cpu/cover.h"
#include "splat/cpu/depth_sort.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::splat;

// The steps of `bin`. Which tiles a Gaussian reaches is found sixteen Gaussians at a time, as they
// lie in memory. Then contiguous parts of the depth order count their tiles, and fill them: part p
// of a tile's list follows part p - 1, so the lists do not depend on the number of parts.
template <class T>
struct Binning {
  const BinArgs<T>& args;
  const Context& context;
  int32_t tiles_x, tiles_y;
  int64_t tiles, ranks;
  Cover* covers;    // [I N]
  int64_t parts;    // several per thread: those at the end of an image are all hidden
  int64_t* cursor;  // [parts, tiles + 1]: entries counted, then where the next one goes

  Binning(const BinArgs<T>& args_, const Context& context_) : args(args_), context(context_) {
    tiles_x = (args.width + kTile - 1) / kTile;
    tiles_y = (args.height + kTile - 1) / kTile;
    tiles = args.images * tiles_x * tiles_y;
    ranks = args.images * args.gaussians;
    covers = scratch<Cover>(ranks);
    parts = thread_count() == 1 ? 1 : 4 * thread_count();
    cursor = scratch<int64_t>(parts * (tiles + 1));
    memset(cursor, 0, size_t(parts * (tiles + 1)) * sizeof(int64_t));
  }

  template <class U>
  U* scratch(int64_t count) const {
    return static_cast<U*>(context.scratch(context.owner, count * int64_t(sizeof(U))));
  }

  // Calls body(rank, cover) for a part of the order. The covers lie anywhere, and what they point
  // to elsewhere: both are asked for early.
  template <class Body>
  void for_each_rank(int64_t part, Body body) const {
    constexpr int64_t kAhead = 8;
    const int64_t last = ranks * (part + 1) / parts;
    for (int64_t r = ranks * part / parts; r < last; ++r) {
      if (r + 2 * kAhead < last) __builtin_prefetch(covers + args.order[r + 2 * kAhead]);
      if (r + kAhead < last) __builtin_prefetch(covers[args.order[r + kAhead]].runs);
      body(r, covers[args.order[r]]);
    }
  }

  // Many images are sorted side by side, a single one by all threads.
  void order_images() const {
    const int64_t side_by_side = args.images < thread_count() ? 1 : thread_count();
    constexpr int64_t kWorthwhile = 4096;  // Gaussians a thread
    const int64_t most = args.gaussians / kWorthwhile + 1;
    const int64_t threads = most < thread_count() ? most : thread_count();
    const int64_t sort_parts = side_by_side == 1 ? threads : 1;
    const int64_t room = DepthSort<T>::room(args.gaussians, sort_parts);
    auto* rooms = scratch<char>(side_by_side * room);
    auto sort = [&](int64_t image, int worker) {
      DepthSort<T>(args, image, sort_parts, rooms + worker * room).run();
    };
    if (side_by_side > 1) return parallel_tasks(args.images, sort);
    for (int64_t image = 0; image < args.images; ++image) sort(image, 0);
  }

  void cover() const {
    for_each_chunk(args.images, args.gaussians,
                   [&](int64_t image, int64_t, int64_t first, int64_t last) {
                     cover_chunk(args, context, image, first, last, covers);
                   });
  }

  // A run is counted where it begins and uncounted behind its end: sums along the tiles are counts.
  void count() const {
    auto task = [&](int64_t part, int) {
      int64_t* change = cursor + part * (tiles + 1);
      for_each_rank(part, [&](int64_t r, const Cover& cover) {
        int64_t reached = 0;
        for (const TileRun* run = cover.runs; run < cover.runs + cover.rows; ++run) {
          ++change[run->first];
          --change[run->first + run->count];
          reached += run->count;
        }
        args.starts[r + 1] = reached;
      });
      for (int64_t tile = 0; tile < tiles; ++tile) change[tile + 1] += change[tile];
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
        int64_t& place = cursor[part * (tiles + 1) + tile];
        const int64_t size = place;
        place = total;
        total += size;
      }
    }
    args.tile_offsets[tiles] = total;
    return total;
  }

  void fill(int32_t* tile_ids, int32_t* entries_of) const {
    auto task = [&](int64_t part, int) {
      int64_t* next = cursor + part * (tiles + 1);
      for_each_rank(part, [&](int64_t r, const Cover& cover) {
        int64_t entry = args.starts[r];
        for (const TileRun* run = cover.runs; run < cover.runs + cover.rows; ++run)
          for (int32_t x = 0; x < run->count; ++x) {
            const int64_t at = next[run->first + x]++;
            tile_ids[at] = args.order[r];
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
  binning.cover();
  binning.count();
  int32_t *tile_ids, *entries_of;
  args.allocate(args.owner, binning.accumulate(), &tile_ids, &entries_of);
  binning.fill(tile_ids, entries_of);
}

}  // namespace pyext::PYEXT_ISA
