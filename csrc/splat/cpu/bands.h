// Tiles in bands: what is stored per (tile, Gaussian) entry is needed for one band at a time.
#pragma once

#include "splat/cpu/schedule.h"

namespace pyext::PYEXT_ISA {

struct Bands {
  const int64_t* tile_offsets;
  int64_t tiles;
  int64_t budget;  // entries

  // Where the band that starts with `tile` ends: after as many tiles as fit, at least one.
  int64_t end(int64_t tile) const {
    const int64_t begin = tile_offsets[tile++];
    while (tile < tiles && tile_offsets[tile + 1] - begin <= budget) ++tile;
    return tile;
  }
  // Entries of the largest band.
  int64_t widest() const {
    int64_t most = 0;
    for (int64_t tile = 0, next; tile < tiles; tile = next) {
      next = end(tile);
      const int64_t size = tile_offsets[next] - tile_offsets[tile];
      most = size > most ? size : most;
    }
    return most;
  }
};

}  // namespace pyext::PYEXT_ISA
