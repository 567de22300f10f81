// The compositor's weights of one tile, Gaussian by Gaussian: what the ops share that bring pixels
// back to Gaussians.
#pragma once

#include <cstring>

#include "splat/cpu/march.h"

namespace pyext::PYEXT_ISA {

constexpr int64_t kWeightBlock = int64_t(kBlock) * kTile * kLanes;  // scratch of one worker

// Ends at once the pixels of a tile that are not wanted: bits of `across` and `down` say which
// columns and rows are, the mask which pixels.
template <class T>
void keep_pixels(const CompositeArgs<T>& args, const TileAt& at, const bool* mask, uint32_t across,
                 uint32_t down, Row<T>* rows) {
  const Lanes<T> far = T(kFarAway);
  for (int r = 0; r < kTile; ++r) {
    if (!rows[r].live) continue;
    T wanted[kLanes];
    const int64_t pixel = (at.image * args.height + at.y + r) * args.width + at.x;
    for (int i = 0; i < kLanes; ++i) {
      const bool inside = (down >> r & 1) && (across >> i & 1) && at.x + i < args.width;
      wanted[i] = T(inside && (!mask || mask[pixel + i]));
    }
    rows[r].x = select(Lanes<T>::load(wanted) > Lanes<T>(T(0)), rows[r].x, far);
    rows[r].live = (rows[r].x < Lanes<T>(T(kTile))).any();
  }
}

// Calls visit(entry, id, rows, weights) for every Gaussian that contributes to a pixel of the tile,
// front to back. `entry` is its place in tile_ids; weights [16 rows, 16 lanes] hold the rows whose
// bits are set in `rows`, zero where a pixel gets nothing.
template <class T, class Visit>
void for_each_contributor(const March<T>& args, int64_t tile, const TileAt& at, Row<T>* rows,
                          T* weights, Visit visit) {
  const Lanes<T> alpha_max(args.alpha_max), zero(T(0));
  const int64_t end = args.tile_offsets[tile + 1];
  Block<T> block;
  bool live = true;
  for (int64_t first = args.tile_offsets[tile]; first < end && live; first += kBlock) {
    uint16_t hit_rows[kBlock] = {};
    load_block(args, at, first, end, block);
    live = false;
    for (int r = 0; r < kTile; ++r) {
      Row<T> row = rows[r];
      if (!row.live) continue;
      for (uint64_t bits = touched(block, r); bits && row.live; bits &= bits - 1) {
        const int j = __builtin_ctzll(bits);
        const Step<T> s = step(block, j, alpha_max, row);
        select(s.contributes, s.alpha * s.before, zero).store(weights + (j * kTile + r) * kLanes);
        hit_rows[j] |= uint16_t(uint16_t(s.contributes.any()) << r);
      }
      rows[r] = row;
      live |= row.live;
    }
    for (int j = 0; j < block.count; ++j)
      if (hit_rows[j])
        visit(first + j, block.id[j], uint32_t(hit_rows[j]), weights + j * kTile * kLanes);
  }
}

// Sum and number of a Gaussian's weights in a tile, as for_each_contributor hands them over.
template <class T>
PYEXT_INLINE T mass_and_hits(uint32_t rows, const T* weights, int32_t& hits) {
  Lanes<T> mass(T(0));
  hits = 0;
  for (; rows; rows &= rows - 1) {
    const Lanes<T> row = Lanes<T>::load(weights + __builtin_ctz(rows) * kLanes);
    mass = mass + row;
    hits += __builtin_popcount((row > Lanes<T>(T(0))).bits());
  }
  return mass.sum();
}

}  // namespace pyext::PYEXT_ISA
