// Which thread takes which tile: longest lists first, so that no thread is left with a long one.
#pragma once

#include "core/isa_namespace.h"
#include "core/parallel.h"
#include "splat/kernels.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::splat;

// Tiles [first, last) by descending list length in powers of two (a counting sort).
inline void longest_first(const int64_t* tile_offsets, int64_t first, int64_t last,
                          int64_t* order) {
  int64_t start[65] = {};
  auto bucket = [&](int64_t tile) {
    const int64_t size = tile_offsets[tile + 1] - tile_offsets[tile];
    return size ? __builtin_clzll(uint64_t(size)) : 64;
  };
  for (int64_t tile = first; tile < last; ++tile) ++start[bucket(tile)];
  int64_t total = 0;
  for (int64_t& s : start) {
    const int64_t size = s;
    s = total;
    total += size;
  }
  for (int64_t tile = first; tile < last; ++tile) order[start[bucket(tile)]++] = tile;
}

// Calls body(tile, worker) for tiles [first, last).
template <class Body>
void for_each_tile_in_parallel(const int64_t* tile_offsets, int64_t first, int64_t last,
                               const Context& context, Body body) {
  auto* order = static_cast<int64_t*>(
      context.scratch(context.owner, (last - first) * int64_t(sizeof(int64_t))));
  longest_first(tile_offsets, first, last, order);
  auto task = [&](int64_t index, int worker) { body(order[index], worker); };
  parallel_tasks(last - first, task);
}

}  // namespace pyext::PYEXT_ISA
