// Tile lists without a global sort: Gaussians are visited front to back, so every tile's list comes
// out sorted.
#pragma once

#include <cstring>

#include "core/isa_namespace.h"
#include "core/parallel.h"
#include "splat/tiles.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::splat;

struct DepthKey {
  uint64_t key;
  int32_t index;
};

// Positive floats order like their bits.
inline uint64_t depth_bits(float depth) {
  uint32_t bits;
  memcpy(&bits, &depth, sizeof bits);
  return bits;
}
inline uint64_t depth_bits(double depth) {
  uint64_t bits;
  memcpy(&bits, &depth, sizeof bits);
  return bits;
}

// Stable radix sort by key, 11 bits a pass; the result is in `keys`.
inline void sort_by_depth(DepthKey* keys, DepthKey* spare, int64_t count, int key_bits) {
  constexpr int kBits = 11;
  constexpr int kBuckets = 1 << kBits;
  DepthKey* from = keys;
  DepthKey* to = spare;
  for (int shift = 0; shift < key_bits; shift += kBits) {
    int64_t start[kBuckets] = {};
    for (int64_t i = 0; i < count; ++i) ++start[from[i].key >> shift & (kBuckets - 1)];
    int64_t total = 0;
    for (int64_t& s : start) {
      const int64_t size = s;
      s = total;
      total += size;
    }
    for (int64_t i = 0; i < count; ++i)
      to[start[from[i].key >> shift & (kBuckets - 1)]++] = from[i];
    DepthKey* swap = from;
    from = to;
    to = swap;
  }
  if (from != keys) memcpy(keys, from, size_t(count) * sizeof(DepthKey));
}

// order[0..N) of one image: visible Gaussians front to back, then the others by index.
template <class T>
void order_image(const BinArgs<T>& args, int64_t image, DepthKey* keys) {
  const int64_t n = args.gaussians, base = image * n;
  int32_t* order = args.order + base;
  int64_t visible = 0, hidden = n;
  for (int64_t i = 0; i < n; ++i)
    if (args.radii[2 * (base + i)] > 0 && args.radii[2 * (base + i) + 1] > 0)
      keys[visible++] = {depth_bits(args.depths[base + i]), int32_t(base + i)};
  for (int64_t i = n - 1; i >= 0; --i)
    if (!(args.radii[2 * (base + i)] > 0 && args.radii[2 * (base + i) + 1] > 0))
      order[--hidden] = int32_t(base + i);
  sort_by_depth(keys, keys + n, visible, int(8 * sizeof(T)));
  for (int64_t i = 0; i < visible; ++i) order[i] = keys[i].index;
}

template <class T>
void bin(const BinArgs<T>& args, const Context& context) {
  const int32_t tiles_x = (args.width + kTile - 1) / kTile;
  const int32_t tiles_y = (args.height + kTile - 1) / kTile;
  const int64_t tiles = args.images * tiles_x * tiles_y, ranks = args.images * args.gaussians;
  const int parts = thread_count();

  auto* keys = static_cast<DepthKey*>(
      context.scratch(context.owner, parts * 2 * args.gaussians * int64_t(sizeof(DepthKey))));
  auto order_task = [&](int64_t image, int worker) {
    order_image(args, image, keys + worker * 2 * args.gaussians);
  };
  parallel_tasks(args.images, order_task);

  // Contiguous parts of the depth order count their tiles, then fill them: part p of a tile's
  // list follows part p - 1, so the lists do not depend on the number of parts.
  auto* cursor = static_cast<int64_t*>(
      context.scratch(context.owner, parts * tiles * int64_t(sizeof(int64_t))));
  memset(cursor, 0, size_t(parts * tiles) * sizeof(int64_t));
  auto count_part = [&](int64_t part, int) {
    int64_t* counts = cursor + part * tiles;
    for (int64_t r = ranks * part / parts; r < ranks * (part + 1) / parts; ++r) {
      int64_t reached = 0;
      for_each_tile(args, tiles_x, tiles_y, args.order[r], [&](int64_t tile) {
        ++counts[tile];
        ++reached;
      });
      args.starts[r + 1] = reached;
    }
  };
  parallel_tasks(parts, count_part);
  args.starts[0] = 0;
  for (int64_t r = 0; r < ranks; ++r) args.starts[r + 1] += args.starts[r];
  int64_t total = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    args.tile_offsets[tile] = total;
    for (int part = 0; part < parts; ++part) {
      const int64_t size = cursor[part * tiles + tile];
      cursor[part * tiles + tile] = total;
      total += size;
    }
  }
  args.tile_offsets[tiles] = total;

  int32_t *tile_ids, *entries_of;
  args.allocate(args.owner, total, &tile_ids, &entries_of);
  auto fill_part = [&](int64_t part, int) {
    int64_t* next = cursor + part * tiles;
    for (int64_t r = ranks * part / parts; r < ranks * (part + 1) / parts; ++r) {
      const int32_t id = args.order[r];
      int32_t* entry = entries_of + args.starts[r];
      for_each_tile(args, tiles_x, tiles_y, id, [&](int64_t tile) {
        const int64_t at = next[tile]++;
        tile_ids[at] = id;
        *entry++ = int32_t(at);
      });
    }
  };
  parallel_tasks(parts, fill_part);
}

}  // namespace pyext::PYEXT_ISA
