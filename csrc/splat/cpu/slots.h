// Sums per Gaussian over all pixels, without atomics. Every (tile, Gaussian) entry has one slot of
// numbers, which its tile fills; then each Gaussian adds its slots in the order of its tiles, so
// that the sums do not depend on who computed what. Tiles are taken in bands of bounded size.
#pragma once

#include <cstring>

#include "core/simd.h"
#include "splat/cpu/bands.h"

namespace pyext::PYEXT_ISA {

constexpr int64_t kSlotBytes = int64_t(256) << 20;  // of one band
constexpr int64_t kRanks = 512;                     // Gaussians per task
constexpr int64_t kRanksAhead = 8;
constexpr int64_t kSlotsAhead = 64;  // slots lie anywhere: ask for them early

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
  void prefetch(int64_t entry) const {
    if (entry >= end || entry < begin) return;
    __builtin_prefetch(slot(entry));
    __builtin_prefetch(slot(entry) + width - 1);
  }
  // sums [width, rounded up to whole vectors] of `count` entries.
  void sum(const int32_t* entries, int64_t count, T* sums) const {
    for (int64_t k = 0; k < width; k += kLanes) {
      Lanes<T> total(T(0));
      for (int64_t i = 0; i < count; ++i) total = total + Lanes<T>::load(slot(entries[i]) + k);
      total.store(sums + k);
    }
  }
};

// Calls take(id, sums) for those Gaussians of ranks [first, last) that have entries in the band,
// and some time before that prefetch(id); cursors [ranks] say how far earlier bands came.
template <class T, class Prefetch, class Take>
void gather_band(const SlotLists& lists, const SlotBand<T>& band, int64_t first, int64_t last,
                 int64_t* cursors, T* sums, Prefetch prefetch, Take take) {
  const int64_t total = lists.starts[lists.ranks];
  for (int64_t r = first; r < last; ++r) {
    if (r + kRanksAhead < last) prefetch(lists.order[r + kRanksAhead]);
    int64_t cursor = cursors[r];
    const int64_t begin = cursor;
    for (; cursor < lists.starts[r + 1] && lists.entries_of[cursor] < band.end; ++cursor)
      if (cursor + kSlotsAhead < total) band.prefetch(lists.entries_of[cursor + kSlotsAhead]);
    cursors[r] = cursor;
    if (cursor == begin) continue;
    band.sum(lists.entries_of + begin, cursor - begin, sums);
    take(lists.order[r], sums);
  }
}

// Calls fill(tile, worker, slots) for every tile that has entries, with its slots [entries, width]
// zeroed, and take(id, sums [width]) for every Gaussian that has some: more than once if there is
// more than one band. prefetch(id) is a chance to ask for what `take` will touch.
template <class T, class Fill, class Prefetch, class Take>
void sum_slots(const SlotLists& lists, int64_t width, const Context& context, Fill fill,
               Prefetch prefetch, Take take) {
  const Bands bands{lists.tile_offsets, lists.tiles, kSlotBytes / (width * int64_t(sizeof(T)))};
  const int64_t padded = (width + kLanes - 1) / kLanes * kLanes;
  auto allocate = [&](int64_t bytes) { return context.scratch(context.owner, bytes); };
  // A vector is read from every slot: the last ones reach beyond the end.
  auto* slots = static_cast<T*>(allocate((bands.widest() * width + kLanes) * int64_t(sizeof(T))));
  auto* sums = static_cast<T*>(allocate(thread_count() * padded * int64_t(sizeof(T))));
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
    auto gather = [&](int64_t index, int worker) {
      const int64_t last = (index + 1) * kRanks;
      gather_band(lists, band, index * kRanks, last < lists.ranks ? last : lists.ranks, cursors,
                  sums + worker * padded, prefetch, take);
    };
    parallel_tasks((lists.ranks + kRanks - 1) / kRanks, gather);
  }
}

}  // namespace pyext::PYEXT_ISA
