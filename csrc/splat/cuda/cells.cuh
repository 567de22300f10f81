// The sparse matrix between Gaussians and the cells of a grid laid over the images.
//
// Tiles are marched twice: to count the non-zeros of each (tile, Gaussian) entry, then to write
// them with a key that is their place in the matrix. A stable sort by key brings together what
// tiles have in common, in the order of the tiles, and one thread a place adds it up.
#pragma once

#include "splat/cuda/bin.cuh"
#include "splat/cuda/unproject.cuh"
#include "splat/cuda/weights.cuh"

namespace pyext::splat::cuda {

// Where a matrix has its elements: key = row << column_bits | column.
struct MatrixShape {
  int64_t rows, columns;
  int column_bits;

  __host__ __device__ int64_t row(uint64_t key) const { return int64_t(key >> column_bits); }
  __host__ __device__ int64_t column(uint64_t key) const {
    return int64_t(key & ((uint64_t(1) << column_bits) - 1));
  }
};

inline MatrixShape matrix_shape(const CellsArgs<float>& args) {
  const int64_t cells = args.forward.images * int64_t(args.cell_width) * args.cell_height;
  const int64_t gaussians = args.forward.gaussians;
  const int64_t rows = args.by_cell ? cells : gaussians;
  const int64_t columns = args.by_cell ? gaussians : cells;
  return {rows, columns, bits_for(columns)};
}

// What one Gaussian gives to cell (y, x) of the tile's own cells, from weights [256 pixels].
__device__ inline float cell_value(const CellsArgs<float>& args, const float* weights, int32_t y,
                                   int32_t x) {
  const float* down = args.down.weights + int64_t(y) * kTile;
  const float* across = args.across.weights + int64_t(x) * kTile;
  float value = 0.0f;
  for (int r = 0; r < kTile; ++r) {
    if (down[r] == 0.0f) continue;
    float row = 0.0f;
    for (int c = 0; c < kTile; ++c) {
      const float weight = weights[r * kTile + c];
      row = fmaf(args.count ? float(weight != 0.0f) : weight, across[c], row);
    }
    value = fmaf(down[r], row, value);
  }
  return value;
}

// Counts the non-zeros of each entry (keys null), or writes them from ends[entry - 1] on.
__global__ void __launch_bounds__(kTileThreads)
    cells_kernel(CellsArgs<float> args, MatrixShape shape, int64_t* counts, const int64_t* ends,
                 uint64_t* keys, float* values) {
  __shared__ float weights[kGroup][kTileThreads];
  const CompositeArgs<float>& f = args.forward;
  const Pixel pixel = pixel_of_thread(f);
  const int32_t tile_x = pixel.tile_x / kTile, tile_y = pixel.tile_y / kTile;
  const int x = int(pixel.x), y = int(pixel.y), column = y * kTile + x;
  const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) >> 5;
  const bool used = (args.across.used[tile_x] >> x & 1) && (args.down.used[tile_y] >> y & 1);
  PixelState state;
  state.finished = !used || !pixel.inside || (args.mask && !args.mask[pixel.index]);
  const int32_t left = args.across.starts[tile_x], top = args.down.starts[tile_y];
  const int32_t wide = args.across.starts[tile_x + 1] - left;
  const int64_t own = int64_t(wide) * (args.down.starts[tile_y + 1] - top);
  for_each_group(
      f, pixel, state, [&](const Batch& batch, int64_t at, int first, int count, unsigned bits) {
        for (int i = 0; i < kGroup; ++i) weights[i][column] = 0.0f;
        const unsigned counted =
            weigh_group(f, batch, pixel, at, first, bits, state, weights, column);
        if (__syncthreads_and(counted == 0)) return;
        for (int i = warp; i < count; i += kWarps) {
          const int64_t entry = at + first + i, id = batch.id[first + i];
          int64_t place = keys && entry > 0 ? ends[entry - 1] : 0;
          for (int64_t k = lane; k < own + lane; k += 32) {  // all lanes alike
            const int32_t row = top + int32_t(k / wide), across = left + int32_t(k % wide);
            const float value = k < own ? cell_value(args, weights[i], row, across) : 0.0f;
            const unsigned found = __ballot_sync(kFullWarp, value != 0.0f);
            if (keys && value != 0.0f) {
              const int64_t image = id / f.gaussians, n = id % f.gaussians;
              const int64_t cell =
                  (image * args.cell_height + args.down.cells[row]) * args.cell_width +
                  args.across.cells[across];
              const int64_t to = place + __popc(found & ((1u << lane) - 1));
              keys[to] = uint64_t(args.by_cell ? cell : n) << shape.column_bits |
                         uint64_t(args.by_cell ? n : cell);
              values[to] = value;
            }
            place += __popc(found);
          }
          if (!keys && lane == 0) counts[entry] = place;
        }
        __syncthreads();
      });
}

__global__ void __launch_bounds__(kBinThreads)
    heads_kernel(const uint64_t* keys, int64_t count, int64_t* heads) {
  const int64_t p = int64_t(blockIdx.x) * kBinThreads + threadIdx.x;
  if (p < count) heads[p] = p == 0 || keys[p] != keys[p - 1];
}

// The thread at the head of equal keys adds up their values; `number` [count] numbers the heads
// from 1. Heads also fill in the rows that start there; thread `count` closes the list.
__global__ void __launch_bounds__(kBinThreads)
    merge_kernel(CellsArgs<float> args, MatrixShape shape, const uint64_t* keys,
                 const float* values, const int64_t* number, int64_t count, int64_t* col,
                 float* val) {
  const int64_t p = int64_t(blockIdx.x) * kBinThreads + threadIdx.x;
  if (p > count || (p > 0 && p < count && keys[p] == keys[p - 1])) return;
  const int64_t before = p == 0 ? 0 : number[p - 1];
  const int64_t previous = p == 0 ? -1 : shape.row(keys[p - 1]);
  const int64_t row = p == count ? shape.rows : shape.row(keys[p]);
  for (int64_t r = previous + 1; r <= row; ++r) args.crow[r] = before;
  if (p == count) return;
  float sum = 0.0f;
  for (int64_t q = p; q < count && keys[q] == keys[p]; ++q) sum += values[q];
  col[before] = shape.column(keys[p]);
  val[before] = sum;
}

// Prefix sums of `in`; returns the last, for which it waits.
inline int64_t accumulate(const Context& context, const int64_t* in, int64_t* out, int64_t count) {
  const auto stream = cudaStream_t(context.stream);
  int64_t total = 0;
  if (count == 0) return total;
  with_scratch(context, "prefix sum", [&](void* scratch, size_t& bytes) {
    return cub::DeviceScan::InclusiveSum(scratch, bytes, in, out, count, stream);
  });
  check_cuda(cudaMemcpyAsync(&total, out + count - 1, sizeof total, cudaMemcpyDeviceToHost, stream),
             "copy");
  check_cuda(cudaStreamSynchronize(stream), "wait for the number of non-zeros");
  return total;
}

// Sum and number of each Gaussian's weights: lifting no channels.
inline void mass_and_hits(const CellsArgs<float>& args, const Context& context) {
  UnprojectArgs<float> nothing{};
  nothing.forward = args.forward;
  nothing.order = args.order;
  nothing.starts = args.starts;
  nothing.entries_of = args.entries_of;
  nothing.mask = args.mask;
  nothing.mass = args.mass;
  nothing.hits = args.hits;
  unproject(nothing, context);
}

inline void cells(const CellsArgs<float>& args, const Context& context) {
  const CompositeArgs<float>& f = args.forward;
  if (args.mass) mass_and_hits(args, context);
  const auto stream = cudaStream_t(context.stream);
  const MatrixShape shape = matrix_shape(args);
  auto* counts = scratch_array<int64_t>(context, f.entries);
  auto* ends = scratch_array<int64_t>(context, f.entries);
  check_cuda(cudaMemsetAsync(counts, 0, size_t(f.entries) * sizeof(int64_t), stream), "clear");
  auto march = [&](uint64_t* keys, float* values) {
    PYEXT_LAUNCH(cells_kernel, tile_count(f), kTileThreads, stream, args, shape, counts, ends, keys,
                 values);
  };
  march(nullptr, nullptr);
  const int64_t total = accumulate(context, counts, ends, f.entries);
  auto* keys = scratch_array<uint64_t>(context, total);
  auto* sorted_keys = scratch_array<uint64_t>(context, total);
  auto* values = scratch_array<float>(context, total);
  auto* sorted_values = scratch_array<float>(context, total);
  auto* heads = scratch_array<int64_t>(context, total);
  auto* number = scratch_array<int64_t>(context, total);
  if (total > 0) {
    march(keys, values);
    with_scratch(context, "sort by place", [&](void* scratch, size_t& bytes) {
      return cub::DeviceRadixSort::SortPairs(scratch, bytes, keys, sorted_keys, values,
                                             sorted_values, total, 0,
                                             shape.column_bits + bits_for(shape.rows), stream);
    });
    PYEXT_LAUNCH(heads_kernel, blocks_for(total, kBinThreads), kBinThreads, stream, sorted_keys,
                 total, heads);
  }
  int64_t* col;
  float* val;
  args.allocate(args.owner, accumulate(context, heads, number, total), &col, &val);
  PYEXT_LAUNCH(merge_kernel, blocks_for(total + 1, kBinThreads), kBinThreads, stream, args, shape,
               sorted_keys, sorted_values, number, total, col, val);
}

}  // namespace pyext::splat::cuda
