// Walking a tile's Gaussians front to back: the part that the compositor and its backward share, so
// that both take the same branch at every threshold.
//
// One block is one tile, one thread one pixel; a warp covers a patch of 8 x 4 pixels. A tile's list
// is taken in batches; the thread that loads a Gaussian also finds the patches its ellipse reaches,
// and each warp then visits just those Gaussians. Exponents are kept in base 2 with the opacity
// folded in: log2 alpha = (A dx + B dy) dx + C dy^2 + log2 o.
#pragma once

#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"
#include "splat/kernels.h"
#include "splat/tiles.h"

namespace pyext::splat::cuda {

constexpr int kTileThreads = kTile * kTile;
constexpr int kWarps = kTileThreads / 32;
constexpr int kPatchWidth = 8, kPatchHeight = 4;

// The pixel of one thread.
struct Pixel {
  int64_t image, index;  // index into [I, H, W]
  int32_t tile_x, tile_y;
  float x, y;  // centre, relative to the tile's corner
  bool inside;
};

__device__ inline Pixel pixel_of_thread(const CompositeArgs<float>& args) {
  const int32_t tiles_x = (args.width + kTile - 1) / kTile;
  const int32_t tiles_y = (args.height + kTile - 1) / kTile;
  const int64_t per_image = int64_t(tiles_x) * tiles_y, local = blockIdx.x % per_image;
  const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) >> 5;
  const int x = warp % 2 * kPatchWidth + lane % kPatchWidth;
  const int y = warp / 2 * kPatchHeight + lane / kPatchWidth;
  Pixel p;
  p.image = blockIdx.x / per_image;
  p.tile_x = int32_t(local % tiles_x) * kTile;
  p.tile_y = int32_t(local / tiles_x) * kTile;
  p.index = (p.image * args.height + p.tile_y + y) * args.width + p.tile_x + x;
  p.x = float(x) + 0.5f;
  p.y = float(y) + 0.5f;
  p.inside = p.tile_x + x < args.width && p.tile_y + y < args.height;
  return p;
}

// Consecutive Gaussians of a tile, in shared memory.
struct Batch {
  float u[kTileThreads], v[kTileThreads];  // centre, relative to the tile's corner
  float A[kTileThreads], B[kTileThreads], C[kTileThreads];
  float lo[kTileThreads];  // log2 o
  int32_t id[kTileThreads];
  uint8_t patches[kTileThreads];  // bit w: the ellipse reaches the patch of warp w
};

__device__ inline uint8_t reached_patches(const Ellipse<float>& ellipse) {
  unsigned patches = 0;
  for (int row = 0; row < kTile / kPatchHeight; ++row) {
    const float y = float(row * kPatchHeight) + 0.5f;
    float left, right;
    if (!x_extent(ellipse, y, y + float(kPatchHeight - 1), &left, &right)) continue;
    for (int column = 0; column < kTile / kPatchWidth; ++column) {
      const float x = float(column * kPatchWidth) + 0.5f;
      const bool reached = left <= x + float(kPatchWidth - 1) && right >= x;
      patches |= unsigned(reached) << (row * (kTile / kPatchWidth) + column);
    }
  }
  return uint8_t(patches);
}

// Loads the Gaussian at list position `at` into place threadIdx.x.
__device__ inline void load_into(Batch& batch, const CompositeArgs<float>& args, const Pixel& pixel,
                                 int64_t at) {
  const int j = int(threadIdx.x);
  const int64_t id = args.tile_ids[at];
  const float u = args.means2d[2 * id] - float(pixel.tile_x);
  const float v = args.means2d[2 * id + 1] - float(pixel.tile_y);
  const float a = args.conics[3 * id], b = args.conics[3 * id + 1], c = args.conics[3 * id + 2];
  const float opacity = args.opacities[id];
  const float level = 2.0f * vlog(opacity * float(1.0 / kAlphaMin));
  batch.u[j] = u;
  batch.v[j] = v;
  batch.A[j] = a * float(-0.5 * kLog2E);
  batch.B[j] = b * float(-kLog2E);
  batch.C[j] = c * float(-0.5 * kLog2E);
  batch.lo[j] = vlog2(opacity);
  batch.id[j] = int32_t(id);
  batch.patches[j] = reached_patches(make_ellipse(u, v, a, b, c, level));
}

// Which Gaussians of 32, from place `first` on, reach this warp's patch.
__device__ inline unsigned patch_bits(const Batch& batch, int first, int count) {
  const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) >> 5;
  const bool reached = first + lane < count && (batch.patches[first + lane] >> warp & 1);
  return __ballot_sync(kFullWarp, reached);
}

struct Sample {
  float alpha;
  bool hit;  // alpha reaches 1/255
};

__device__ inline Sample sample(const Batch& batch, int j, const Pixel& pixel, float alpha_max) {
  const float dx = pixel.x - batch.u[j], dy = pixel.y - batch.v[j];
  const float f = batch.B[j] * dy, e = fmaf(batch.C[j] * dy, dy, batch.lo[j]);
  const float power = fmaf(fmaf(batch.A[j], dx, f), dx, e);
  Sample s;
  s.alpha = vmin(alpha_max, vexp2(power));  // in this order not-a-number stays what it is
  // power > log2 o would be a negative distance: rounding of a nearly singular conic.
  s.hit = s.alpha >= float(kAlphaMin) && power <= batch.lo[j];
  return s;
}

}  // namespace pyext::splat::cuda
