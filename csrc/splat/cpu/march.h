// Walking a tile's Gaussians front to back, row by row: the part that the compositor and its
// backward share, so that both take the same branch at every threshold.
//
// A tile's list is taken in blocks of 64. For each of the tile's 16 rows one pass over the block,
// sixteen Gaussians a vector, finds those whose ellipse touches the row; then the row's pixels, one
// vector, visit just these. Exponents are kept in base 2 with the opacity folded in:
//   log2 alpha = log2 o - log2(e) (a dx^2 / 2 + b dx dy + c dy^2 / 2) = (A dx + f) dx + e,
// where f = B dy and e = log2 o + C dy^2 are computed once per Gaussian and row. Everything that
// depends on the Gaussian alone is computed once and lies in one short record, because lists visit
// Gaussians in an order that memory does not have.
#pragma once

#include "core/exp2.h"
#include "core/parallel.h"
#include "core/simd_rows.h"
#include "splat/kernels.h"
#include "splat/math.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::splat;

constexpr int kBlock = 64;  // one machine word of Gaussians
static_assert(kTile == kLanes, "one vector is one tile row");

constexpr double kLog2AlphaMin = -7.994353436858858;  // log2(1 / 255)
// Rows are kept when their best pixel comes this close to the cut: rounding must not lose one.
constexpr double kRowSlack = 1e-3;

constexpr int kSplat = 8;  // u, v, A, B, C, log2 o, ridge: d(best dx) / d(dy) = -B / (2 A)

// What the compositor is given, and every Gaussian's record.
template <class T>
struct March : CompositeArgs<T> {
  T* splats;  // [I N, kSplat]

  March(const CompositeArgs<T>& args, const Context& context) : CompositeArgs<T>(args) {
    const int64_t count = args.images * args.gaussians;
    splats = static_cast<T*>(context.scratch(context.owner, count * kSplat * int64_t(sizeof(T))));
    constexpr int64_t kPerTask = 2048;
    auto task = [&](int64_t index, int) {
      const int64_t last = (index + 1) * kPerTask < count ? (index + 1) * kPerTask : count;
      for (int64_t id = index * kPerTask; id < last; id += kLanes)
        write_splats(id, int(last - id < kLanes ? last - id : kLanes));
    };
    parallel_tasks((count + kPerTask - 1) / kPerTask, task);
  }

 private:
  void write_splats(int64_t id, int count) {
    using V = Lanes<T>;
    V mean[2], conic[3], opacity;
    load_rows<2>(this->means2d + 2 * id, count, mean);
    load_rows<3>(this->conics + 3 * id, count, conic);
    load_rows<1>(this->opacities + id, count, &opacity);
    const V half_log2e(T(0.5 * kLog2E)), log2e = V(T(kLog2E));
    const V A = -(conic[0] * half_log2e), B = -(conic[1] * log2e), C = -(conic[2] * half_log2e);
    const V splat[kSplat] = {mean[0], mean[1], A, B, C, vlog2(opacity), B / (V(T(-2)) * A),
                             V(T(0))};
    store_rows<kSplat>(splat, splats + id * kSplat, count);
  }
};

// Sixty-four Gaussians of a tile, as structure of arrays.
template <class T>
struct Block {
  int32_t id[kBlock];
  int count;
  uint64_t inside;                     // the first `count` bits
  alignas(64) T u[kBlock], v[kBlock];  // centre, relative to the tile's corner
  alignas(64) T A[kBlock], B[kBlock], C[kBlock];
  alignas(64) T lo[kBlock];  // log2 o
  alignas(64) T ridge[kBlock];
  T position[kBlock];  // in tile_ids, as integer bits: one load puts it in all lanes
  // Per row, refreshed by touched(): terms of the exponent that do not depend on x.
  alignas(64) T e[kBlock], f[kBlock];
};

struct TileAt {
  int64_t image;
  int32_t x, y;  // first pixel
};

inline TileAt tile_at(int64_t tile, int32_t width, int32_t height) {
  const int32_t tiles_x = (width + kTile - 1) / kTile, tiles_y = (height + kTile - 1) / kTile;
  const int64_t per_image = int64_t(tiles_x) * tiles_y, local = tile % per_image;
  return {tile / per_image, int32_t(local % tiles_x) * kTile, int32_t(local / tiles_x) * kTile};
}

template <class T>
void load_block(const March<T>& args, const TileAt& at, int64_t first, int64_t last,
                Block<T>& block) {
  using V = Lanes<T>;
  block.count = int(last - first < kBlock ? last - first : kBlock);
  block.inside = ~uint64_t(0) >> (kBlock - block.count);
  for (int j = 0; j < block.count; ++j) block.position[j] = integer_bits<T>(first + j);
  for (int j = 0; j < block.count; ++j) {
    const int32_t id = block.id[j] = args.tile_ids[first + j];
    __builtin_prefetch(args.features + id * args.channels);
  }
  const V x(T(at.x)), y(T(at.y));
  for (int j = 0; j < block.count; j += kLanes) {
    V splat[kSplat];
    gather_records(args.splats, block.id + j, block.count - j, splat);
    (splat[0] - x).store(block.u + j);
    (splat[1] - y).store(block.v + j);
    splat[2].store(block.A + j);
    splat[3].store(block.B + j);
    splat[4].store(block.C + j);
    splat[5].store(block.lo + j);
    splat[6].store(block.ridge + j);
  }
  // The next block's, on their way while this one is composited.
  const int64_t next = last - first < 2 * kBlock ? last : first + 2 * kBlock;
  for (int64_t i = first + kBlock; i < next; ++i)
    __builtin_prefetch(args.splats + args.tile_ids[i] * int64_t(kSplat));
}

// Bit j is set where Gaussian j of the block can reach alpha 1/255 in this row of pixels.
template <class T>
PYEXT_INLINE uint64_t touched(Block<T>& block, int row) {
  using V = Lanes<T>;
  const V y(T(row) + T(0.5)), left(T(0.5)), right(T(kTile) - T(0.5));
  const V cut(T(kLog2AlphaMin - kRowSlack));
  uint64_t bits = 0;
  for (int j = 0; j < block.count; j += kLanes) {
    const V dy = y - V::load(block.v + j), u = V::load(block.u + j);
    const V f = V::load(block.B + j) * dy;
    const V e = fma(V::load(block.C + j) * dy, dy, V::load(block.lo + j));
    const V dx = vmin(vmax(V::load(block.ridge + j) * dy, left - u), right - u);
    const V best = fma(fma(V::load(block.A + j), dx, f), dx, e);
    f.store(block.f + j);
    e.store(block.e + j);
    bits |= uint64_t((best >= cut).bits()) << j;
  }
  return bits & block.inside;
}

// One row of pixels on its way through the list. A pixel that is finished, or lies outside the
// image, is moved so far away that no Gaussian reaches it: no mask has to be carried along.
template <class T>
struct Row {
  Lanes<T> transmittance;
  Lanes<T> x;  // pixel centres, relative to the tile's corner
  bool live;   // any pixel left
};
constexpr double kFarAway = 1e30;

template <class T>
struct Step {
  Lanes<T> alpha, before;  // transmittance in front of the Gaussian
  typename Lanes<T>::Bool contributes;
};

// Gaussian j of the block at one row of pixels.
template <class T>
PYEXT_INLINE Step<T> step(const Block<T>& block, int j, Lanes<T> alpha_max, Row<T>& row) {
  using V = Lanes<T>;
  const V dx = row.x - V(block.u[j]);
  const V power = fma(fma(V(block.A[j]), dx, V(block.f[j])), dx, V(block.e[j]));
  Step<T> s;
  s.alpha = vmin(alpha_max, vexp2(power));  // in this order not-a-number stays what it is
  s.before = row.transmittance;
  const V after = fnma(s.alpha, s.before, s.before);
  // power > log2 o would be a negative distance: rounding of a nearly singular conic.
  const auto hit = (s.alpha >= V(T(kAlphaMin))) & (power <= V(block.lo[j]));
  const auto finishes = hit & (after <= V(T(kTransmittanceMin)));
  s.contributes = without(hit, finishes);
  row.transmittance = select(s.contributes, after, s.before);
  if (__builtin_expect(finishes.any(), 0)) {
    row.x = select(finishes, V(T(kFarAway)), row.x);
    row.live = (row.x < V(T(kTile))).any();
  }
  return s;
}

template <class T>
PYEXT_INLINE Lanes<T> pixel_centres() {
  return iota<T>() + Lanes<T>(T(0.5));
}

// Rows at the start of a list; columns and rows beyond the image are finished.
template <class T>
PYEXT_INLINE void start_rows(const CompositeArgs<T>& args, const TileAt& at, Row<T>* rows) {
  const Lanes<T> centres = pixel_centres<T>();
  const Lanes<T> x =
      select(centres < Lanes<T>(T(args.width - at.x)), centres, Lanes<T>(T(kFarAway)));
  for (int r = 0; r < kTile; ++r) rows[r] = {Lanes<T>(T(1)), x, at.y + r < args.height};
}

}  // namespace pyext::PYEXT_ISA
