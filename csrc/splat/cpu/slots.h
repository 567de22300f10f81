// Sums per Gaussian over all pixels, without atomics. Every (tile, Gaussian) entry has one slot of
// numbers, which its tile fills; then each Gaussian adds its slots in the order of its tiles, so
// that the sums do not depend on who computed what. Tiles are taken in bands of bounded size.
#pragma once

#include <cstring>

#include "core/simd.h"
#include "splat/cpu/bands.h"

namespace pyext::PYEXT_ISA {

// Of one band: few enough to be found in a cache again, unless that made more than eight bands.
constexpr int64_t kSlotBytes = int64_t(4) << 20;
constexpr int64_t kMostBands = 8;
constexpr int64_t kPerTask = 2048;  // Gaussians, or entries

// The lists, and the entries of every Gaussian in them: see BinArgs.
struct SlotLists {
  const int64_t* tile_offsets;
  int64_t tiles;
  const int32_t* order;
  int64_t ranks;
  const int64_t* starts;
  const int32_t* entries_of;
};

inline int64_t longest_list(const SlotLists& lists) {
  int64_t longest = 0;
  for (int64_t tile = 0; tile < lists.tiles; ++tile) {
    const int64_t size = lists.tile_offsets[tile + 1] - lists.tile_offsets[tile];
    longest = size > longest ? size : longest;
  }
  return longest;
}

// The slots of one band: those of entries [begin, end).
template <class T>
struct SlotBand {
  T* slots;
  int64_t width, begin, end;

  T* slot(int64_t entry) const { return slots + (entry - begin) * width; }
  // sums [width, rounded up to whole vectors] of `count` entries.
  void sum(const int32_t* entries, int64_t count, T* sums) const {
    for (int64_t k = 0; k < width; k += kLanes) {
      Lanes<T> total(T(0));
      for (int64_t i = 0; i < count; ++i) total = total + Lanes<T>::load(slot(entries[i]) + k);
      total.store(sums + k);
    }
  }
};

// Calls body(first, last, worker) for tasks that share [0, count).
template <class Body>
void in_tasks(int64_t count, Body body) {
  auto task = [&](int64_t index, int worker) {
    const int64_t last = (index + 1) * kPerTask;
    body(index * kPerTask, last < count ? last : count, worker);
  };
  parallel_tasks((count + kPerTask - 1) / kPerTask, task);
}

// Adds the slots of a band. Gaussians are taken by the first tile of the band that they reach, not
// by depth: neighbours then read the same tiles' slots, front to back.
template <class T>
struct Gather {
  const SlotLists& lists;
  const SlotBand<T>& band;
  int64_t* cursors;  // [ranks]: how far earlier bands came
  int32_t* owners;   // [entries of the band]: the rank of whom this entry is the first, or -1

  void find_owners() const {
    memset(owners, -1, size_t(band.end - band.begin) * sizeof(int32_t));
    in_tasks(lists.ranks, [&](int64_t first, int64_t last, int) {
      for (int64_t r = first; r < last; ++r) {
        if (cursors[r] == lists.starts[r + 1]) continue;
        const int64_t entry = lists.entries_of[cursors[r]];
        if (entry < band.end) owners[entry - band.begin] = int32_t(r);
      }
    });
  }

  void prefetch_slots(int64_t r) const {
    for (int64_t i = cursors[r]; i < lists.starts[r + 1]; ++i) {
      if (lists.entries_of[i] >= band.end) return;
      const T* slot = band.slot(lists.entries_of[i]);
      __builtin_prefetch(slot);
      __builtin_prefetch(slot + band.width - 1);
    }
  }

  // Calls take(id, sums) for the owners of some entries, and before that prefetch(id).
  template <class Prefetch, class Take>
  void add(int64_t first, int64_t last, T* sums, Prefetch prefetch, Take take) const {
    constexpr int64_t kAhead = 8;
    int32_t ranks[kPerTask];
    int64_t count = 0;
    for (int64_t i = first; i < last; ++i) {
      ranks[count] = owners[i];
      count += owners[i] >= 0;
    }
    for (int64_t i = 0; i < count; ++i) {
      if (i + 2 * kAhead < count) {
        const int64_t r = ranks[i + 2 * kAhead];
        __builtin_prefetch(lists.order + r);
        __builtin_prefetch(lists.starts + r + 1);
        __builtin_prefetch(cursors + r, 1);
      }
      if (i + kAhead < count) {
        const int64_t r = ranks[i + kAhead];
        __builtin_prefetch(lists.entries_of + cursors[r]);
        prefetch(lists.order[r]);
      }
      if (i + kAhead / 2 < count) prefetch_slots(ranks[i + kAhead / 2]);
      const int64_t r = ranks[i], begin = cursors[r], end = lists.starts[r + 1];
      int64_t cursor = begin;
      while (cursor < end && lists.entries_of[cursor] < band.end) ++cursor;
      cursors[r] = cursor;
      band.sum(lists.entries_of + begin, cursor - begin, sums);
      take(lists.order[r], sums);
    }
  }
};

// Calls fill(tile, worker, slots) for every tile that has entries, with its slots [entries, width]
// zeroed, and take(id, sums [width]) for every Gaussian that has some: more than once if there is
// more than one band. prefetch(id) is a chance to ask for what `take` will touch.
template <class T, class Fill, class Prefetch, class Take>
void sum_slots(const SlotLists& lists, int64_t width, const Context& context, Fill fill,
               Prefetch prefetch, Take take) {
  const int64_t entries = lists.tile_offsets[lists.tiles];
  const int64_t fit = kSlotBytes / (width * int64_t(sizeof(T))), share = entries / kMostBands;
  const Bands bands{lists.tile_offsets, lists.tiles, fit > share ? fit : share};
  const int64_t padded = (width + kLanes - 1) / kLanes * kLanes;
  auto allocate = [&](int64_t bytes) { return context.scratch(context.owner, bytes); };
  // A vector is read from every slot: the last ones reach beyond the end.
  auto* slots = static_cast<T*>(allocate((bands.widest() * width + kLanes) * int64_t(sizeof(T))));
  auto* sums = static_cast<T*>(allocate(thread_count() * padded * int64_t(sizeof(T))));
  auto* owners = static_cast<int32_t*>(allocate(bands.widest() * int64_t(sizeof(int32_t))));
  auto* cursors = static_cast<int64_t*>(allocate(lists.ranks * int64_t(sizeof(int64_t))));
  memcpy(cursors, lists.starts, size_t(lists.ranks) * sizeof(int64_t));

  for (int64_t tile = 0, next; tile < bands.tiles; tile = next) {
    next = bands.end(tile);
    const SlotBand<T> band{slots, width, lists.tile_offsets[tile], lists.tile_offsets[next]};
    for_each_tile_in_parallel(lists.tile_offsets, tile, next, context, [&](int64_t t, int worker) {
      const int64_t first = lists.tile_offsets[t], size = lists.tile_offsets[t + 1] - first;
      if (size == 0) return;
      memset(band.slot(first), 0, size_t(size * width) * sizeof(T));
      fill(t, worker, band.slot(first));
    });
    const Gather<T> gather{lists, band, cursors, owners};
    gather.find_owners();
    in_tasks(band.end - band.begin, [&](int64_t first, int64_t last, int worker) {
      gather.add(first, last, sums + worker * padded, prefetch, take);
    });
  }
}

}  // namespace pyext::PYEXT_ISA
