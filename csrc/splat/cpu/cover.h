// Which tiles each Gaussian reaches, sixteen Gaussians at a time.
#pragma once

#include "core/simd_rows.h"
#include "splat/cpu/gaussians.h"
#include "splat/tiles.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::splat;

// Neighbouring tiles in one row of them; maybe none.
struct TileRun {
  int32_t first, count;
};

struct Cover {
  const TileRun* runs;  // one for each row of tiles that the bounding box reaches
  int64_t rows;
};

template <class T>
PYEXT_INLINE Reach<Lanes<T>> load_reach(const BinArgs<T>& args, int64_t id, int count,
                                        int32_t tiles_x, int32_t tiles_y) {
  using V = Lanes<T>;
  T radii[2 * kLanes] = {};
  for (int i = 0; i < 2 * count; ++i) radii[i] = T(args.radii[2 * id + i]);
  V mean[2], radius[2], conic[3], opacity;
  load_rows<2>(args.means2d + 2 * id, count, mean);
  deinterleave<2>(radii, radius);  // lanes beyond `count` are culled
  load_rows<3>(args.conics + 3 * id, count, conic);
  load_rows<1>(args.opacities + id, count, &opacity);
  return reach(mean, radius, conic, opacity, V(T(tiles_x)), V(T(tiles_y)));
}

// The runs of sixteen Gaussians, each of which has as many as it has rows, at runs[i].
template <class T>
PYEXT_INLINE void write_runs(const Reach<Lanes<T>>& reach, bool exact, int32_t first,
                             int32_t tiles_x, const int32_t* rows, TileRun* const* runs) {
  using V = Lanes<T>;
  T y_lo[kLanes], lo[kLanes], width[kLanes];
  reach.y_lo.store(y_lo);
  int32_t most = 0;
  for (int i = 0; i < kLanes; ++i) most = rows[i] > most ? rows[i] : most;
  for (int32_t row = 0; row < most; ++row) {
    V run_lo, run_hi;
    tile_run(reach, exact, reach.y_lo + V(T(row)), &run_lo, &run_hi);
    run_lo.store(lo);
    vmax(run_hi - run_lo, V(T(0))).store(width);
    for (int i = 0; i < kLanes; ++i)
      if (row < rows[i])
        runs[i][row] = {first + (int32_t(y_lo[i]) + row) * tiles_x + int32_t(lo[i]),
                        int32_t(width[i])};
  }
}

// covers [I N] of Gaussians [first, last) of an image.
template <class T>
void cover_chunk(const BinArgs<T>& args, const Context& context, int64_t image, int64_t first,
                 int64_t last, Cover* covers) {
  const int32_t tiles_x = (args.width + kTile - 1) / kTile;
  const int32_t tiles_y = (args.height + kTile - 1) / kTile;
  const int64_t base = image * args.gaussians, first_tile = image * tiles_x * tiles_y;
  int32_t rows[kChunk + kLanes];
  int64_t total = 0;
  for_each_group(first, last, [&](int64_t n, int count) {
    const auto reach = load_reach(args, base + n, count, tiles_x, tiles_y);
    T height[kLanes];
    (reach.y_hi - reach.y_lo).store(height);
    for (int i = 0; i < kLanes; ++i) total += rows[n - first + i] = int32_t(height[i]);
  });
  auto* run =
      static_cast<TileRun*>(context.scratch(context.owner, total * int64_t(sizeof(TileRun))));
  for_each_group(first, last, [&](int64_t n, int count) {
    TileRun* runs[kLanes];
    const int32_t* group_rows = rows + (n - first);
    for (int i = 0; i < kLanes; ++i) {
      runs[i] = run;
      if (i < count) covers[base + n + i] = {run, group_rows[i]};
      run += group_rows[i];
    }
    write_runs(load_reach(args, base + n, count, tiles_x, tiles_y), args.exact, int32_t(first_tile),
               tiles_x, group_rows, runs);
  });
}

}  // namespace pyext::PYEXT_ISA
