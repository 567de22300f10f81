// Tile lists by two stable radix sorts: Gaussians by (image, depth), then their entries by tile.
#pragma once

#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include "core/cuda/launch.h"
#include "splat/tiles.h"

namespace pyext::splat::cuda {

constexpr int kBinThreads = 256;

// Runs a CUB algorithm: once to learn how much scratch it needs, once with it.
template <class Algorithm>
void with_scratch(const Context& context, const char* what, Algorithm run) {
  size_t bytes = 0;
  check_cuda(run(nullptr, bytes), what);
  void* scratch = context.scratch(context.owner, int64_t(bytes));
  check_cuda(run(scratch, bytes), what);
}

template <class T>
T* scratch_array(const Context& context, int64_t count) {
  return static_cast<T*>(context.scratch(context.owner, count * int64_t(sizeof(T))));
}

// Bits that hold the numbers below `count`, at least one.
inline int bits_for(int64_t count) {
  int bits = 1;
  while ((int64_t(1) << bits) < count) ++bits;
  return bits;
}

// Positive floats order like their bits; what is not visible goes behind everything.
__global__ void __launch_bounds__(kBinThreads)
    depth_key_kernel(BinArgs<float> args, uint64_t* keys, int32_t* ids) {
  const int64_t at = int64_t(blockIdx.x) * kBinThreads + threadIdx.x;
  if (at >= args.images * args.gaussians) return;
  const bool visible = args.radii[2 * at] > 0 && args.radii[2 * at + 1] > 0;
  const uint32_t depth = visible ? __float_as_uint(args.depths[at]) : 0xffffffffu;
  keys[at] = uint64_t(at / args.gaussians) << 32 | depth;
  ids[at] = int32_t(at);
}

__global__ void __launch_bounds__(kBinThreads)
    count_kernel(BinArgs<float> args, int32_t tiles_x, int32_t tiles_y) {
  const int64_t rank = int64_t(blockIdx.x) * kBinThreads + threadIdx.x;
  if (rank == 0) args.starts[0] = 0;
  if (rank >= args.images * args.gaussians) return;
  int64_t reached = 0;
  for_each_tile(args, tiles_x, tiles_y, args.order[rank], [&](int64_t) { ++reached; });
  args.starts[rank + 1] = reached;
}

__global__ void __launch_bounds__(kBinThreads)
    emit_kernel(BinArgs<float> args, int32_t tiles_x, int32_t tiles_y, uint32_t* tiles,
                int32_t* entries, int32_t* id_of) {
  const int64_t rank = int64_t(blockIdx.x) * kBinThreads + threadIdx.x;
  if (rank >= args.images * args.gaussians) return;
  const int32_t id = args.order[rank];
  int64_t entry = args.starts[rank];
  for_each_tile(args, tiles_x, tiles_y, id, [&](int64_t tile) {
    tiles[entry] = uint32_t(tile);
    entries[entry] = int32_t(entry);
    id_of[entry] = id;
    ++entry;
  });
}

// Thread p looks at sorted entry p and fills in the tiles that start there; thread `total` closes
// the list.
__global__ void __launch_bounds__(kBinThreads)
    lists_kernel(BinArgs<float> args, int64_t tile_count, int64_t total,
                 const uint32_t* sorted_tiles, const int32_t* sorted_entries, const int32_t* id_of,
                 int32_t* tile_ids, int32_t* entries_of) {
  const int64_t p = int64_t(blockIdx.x) * kBinThreads + threadIdx.x;
  if (p > total) return;
  const int64_t previous = p == 0 ? -1 : int64_t(sorted_tiles[p - 1]);
  const int64_t tile = p == total ? tile_count : int64_t(sorted_tiles[p]);
  for (int64_t t = previous + 1; t <= tile; ++t) args.tile_offsets[t] = p;
  if (p == total) return;
  tile_ids[p] = id_of[sorted_entries[p]];
  entries_of[sorted_entries[p]] = int32_t(p);
}

inline void sort_by_depth(const BinArgs<float>& args, const Context& context) {
  const auto stream = cudaStream_t(context.stream);
  const int64_t count = args.images * args.gaussians;
  auto* keys = scratch_array<uint64_t>(context, count);
  auto* sorted = scratch_array<uint64_t>(context, count);
  auto* ids = scratch_array<int32_t>(context, count);
  PYEXT_LAUNCH(depth_key_kernel, blocks_for(count, kBinThreads), kBinThreads, stream, args, keys,
               ids);
  with_scratch(context, "sort by depth", [&](void* scratch, size_t& bytes) {
    return cub::DeviceRadixSort::SortPairs(scratch, bytes, keys, sorted, ids, args.order, count, 0,
                                           32 + bits_for(args.images), stream);
  });
}

inline int64_t count_entries(const BinArgs<float>& args, const Context& context, int32_t tiles_x,
                             int32_t tiles_y) {
  const auto stream = cudaStream_t(context.stream);
  const int64_t ranks = args.images * args.gaussians;
  PYEXT_LAUNCH(count_kernel, blocks_for(ranks, kBinThreads), kBinThreads, stream, args, tiles_x,
               tiles_y);
  auto* sums = scratch_array<int64_t>(context, ranks);
  with_scratch(context, "prefix sum", [&](void* scratch, size_t& bytes) {
    return cub::DeviceScan::InclusiveSum(scratch, bytes, args.starts + 1, sums, ranks, stream);
  });
  check_cuda(cudaMemcpyAsync(args.starts + 1, sums, size_t(ranks) * sizeof(int64_t),
                             cudaMemcpyDeviceToDevice, stream),
             "copy");
  // The one wait of the family: the lists' length decides how much memory they need.
  int64_t total = 0;
  check_cuda(
      cudaMemcpyAsync(&total, args.starts + ranks, sizeof total, cudaMemcpyDeviceToHost, stream),
      "copy");
  check_cuda(cudaStreamSynchronize(stream), "wait for the number of entries");
  return total;
}

inline void bin(const BinArgs<float>& args, const Context& context) {
  const auto stream = cudaStream_t(context.stream);
  const int32_t tiles_x = (args.width + kTile - 1) / kTile;
  const int32_t tiles_y = (args.height + kTile - 1) / kTile;
  const int64_t tiles = args.images * tiles_x * tiles_y, ranks = args.images * args.gaussians;
  sort_by_depth(args, context);
  const int64_t total = count_entries(args, context, tiles_x, tiles_y);
  int32_t *tile_ids, *entries_of;
  args.allocate(args.owner, total, &tile_ids, &entries_of);

  auto* keys = scratch_array<uint32_t>(context, total);
  auto* sorted_keys = scratch_array<uint32_t>(context, total);
  auto* entries = scratch_array<int32_t>(context, total);
  auto* sorted_entries = scratch_array<int32_t>(context, total);
  auto* id_of = scratch_array<int32_t>(context, total);
  PYEXT_LAUNCH(emit_kernel, blocks_for(ranks, kBinThreads), kBinThreads, stream, args, tiles_x,
               tiles_y, keys, entries, id_of);
  with_scratch(context, "sort by tile", [&](void* scratch, size_t& bytes) {
    return cub::DeviceRadixSort::SortPairs(scratch, bytes, keys, sorted_keys, entries,
                                           sorted_entries, total, 0, bits_for(tiles), stream);
  });
  PYEXT_LAUNCH(lists_kernel, blocks_for(total + 1, kBinThreads), kBinThreads, stream, args, tiles,
               total, sorted_keys, sorted_entries, id_of, tile_ids, entries_of);
}

}  // namespace pyext::splat::cuda
