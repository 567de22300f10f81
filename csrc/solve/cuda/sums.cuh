// Sums over rows in double: Gram and cross-Gram matrices, projections, energies, and norms. Every
// sum has one thread or one block to itself, in a fixed order. The products of a chunk of rows may
// be summed in float first.
#pragma once

#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"
#include "solve/kernels.h"

namespace pyext::solve::cuda {

constexpr int kThreads = 256;
constexpr int kTile = 64;   // rows and columns of a block's sums
constexpr int kDepth = 16;  // rows that it holds at once
constexpr int kOwn = 4;     // rows and columns of a thread's sums

__device__ inline double value_at(const Rows& rows, int64_t row, int64_t column) {
  double value = 0.0;
  for_storage(rows.type,
              [&](auto zero) { value = double(widen(row_of<decltype(zero)>(rows, row)[column])); });
  return value;
}

// sums[s] += left_s^T diag(weight) right_s, one tile a block; of a lower triangle the tiles above
// it have nothing to do.
struct ProductArgs {
  Rows left, right;
  Segments segments;
  double* sums;
  bool lower;
  int64_t tile_rows, tile_columns;
};

template <class T>
static __global__ void __launch_bounds__(kThreads) product_kernel(ProductArgs args) {
  __shared__ T left[kDepth][kTile], right[kDepth][kTile];
  const int64_t tiles = args.tile_rows * args.tile_columns, s = blockIdx.x / tiles;
  const int64_t tile = blockIdx.x % tiles;
  const int64_t row0 = tile / args.tile_columns * kTile, column0 = tile % args.tile_columns * kTile;
  if (args.lower && column0 > row0) return;
  const int64_t p = args.left.width, d = args.right.width;
  const int64_t last = last_row(args.segments, s, args.right.count);
  const int own_row = int(threadIdx.x) / 16, own_column = int(threadIdx.x) % 16;
  double sums[kOwn][kOwn] = {};
  T chunk[kOwn][kOwn] = {};
  const int64_t begin = first_row(args.segments, s);
  for (int64_t first = begin; first < last; first += kDepth) {
    for (int i = int(threadIdx.x); i < kDepth * kTile; i += kThreads) {
      const int k = i / kTile, c = i % kTile;
      const int64_t row = first + k;
      const double weight = row < last ? weight_of(args.segments.weight, row) : 0.0;
      const bool counts = weight > 0.0;
      left[k][c] = T(counts && row0 + c < p ? value_at(args.left, row, row0 + c) : 0.0);
      right[k][c] =
          T(counts && column0 + c < d ? weight * value_at(args.right, row, column0 + c) : 0.0);
    }
    __syncthreads();
    for (int k = 0; k < kDepth; ++k) PYEXT_UNROLL
    for (int i = 0; i < kOwn; ++i) PYEXT_UNROLL
    for (int j = 0; j < kOwn; ++j)
      chunk[i][j] += left[k][own_row + 16 * i] * right[k][own_column + 16 * j];
    __syncthreads();
    const int64_t next = first + kDepth;
    if (next < last && (next - begin) % kChunk != 0) continue;
    PYEXT_UNROLL
    for (int i = 0; i < kOwn; ++i) PYEXT_UNROLL
    for (int j = 0; j < kOwn; ++j) {
      sums[i][j] += double(chunk[i][j]);
      chunk[i][j] = T(0);
    }
  }
  PYEXT_UNROLL
  for (int i = 0; i < kOwn; ++i) PYEXT_UNROLL
  for (int j = 0; j < kOwn; ++j) {
    const int64_t row = row0 + own_row + 16 * i, column = column0 + own_column + 16 * j;
    if (row < p && column < d && !(args.lower && column > row))
      args.sums[(s * p + row) * d + column] += sums[i][j];
  }
}

inline void product(const Rows& left, const Rows& right, const Segments& segments, Storage products,
                    double* sums, bool lower, const Context& context) {
  const ProductArgs args{left,
                         right,
                         segments,
                         sums,
                         lower,
                         blocks_for(left.width, kTile),
                         blocks_for(right.width, kTile)};
  const auto kernel = products == Storage::f32 ? product_kernel<float> : product_kernel<double>;
  PYEXT_LAUNCH(kernel, unsigned(segments.count * args.tile_rows * args.tile_columns), kThreads,
               cudaStream_t(context.stream), args);
}

inline void gram(const GramArgs& args, const Context& context) {
  product(args.x, args.x, args.segments, args.products, args.gram, true, context);
}
inline void cross(const CrossArgs& args, const Context& context) {
  product(args.left, args.right, args.segments, args.products, args.cross, false, context);
}

// The sum of a value over the warp, to all lanes.
__device__ inline double warp_sum(double value) {
  for (int offset = 16; offset > 0; offset >>= 1)
    value += __shfl_xor_sync(kFullWarp, value, offset);
  return value;
}

// The row of this thread's warp.
__device__ inline int64_t own_row() { return (int64_t(blockIdx.x) * kThreads + threadIdx.x) / 32; }
inline unsigned row_blocks(int64_t rows) { return blocks_for(rows * 32, kThreads); }

static __global__ void __launch_bounds__(kThreads) project_kernel(ProjectArgs args) {
  const int64_t row = own_row();
  if (row >= args.x.count) return;
  const int lane = int(threadIdx.x) & 31;
  const bool counts = weight_of(args.weight, row) > 0.0;
  for (int64_t r = 0; r < args.outputs; ++r) {
    double sum = 0.0;
    for (int64_t c = lane; counts && c < args.x.width; c += 32)
      sum += value_at(args.x, row, c) * args.a[r * args.x.width + c];
    sum = warp_sum(sum);
    if (lane == 0 && args.h) args.h[row * args.outputs + r] = float(sum);
    if (lane == 0 && args.h_wide) args.h_wide[row * args.outputs + r] = sum;
  }
}

inline void project(const ProjectArgs& args, const Context& context) {
  PYEXT_LAUNCH(project_kernel, row_blocks(args.x.count), kThreads, cudaStream_t(context.stream),
               args);
}

// out[s] += or = the sum, or its root, of the values of segment s: one block a segment.
struct JoinArgs {
  Segments segments;
  int64_t count, each;  // values; in a segment, where it has no ends and is one of many
  const double* values;
  double* out;
  bool root;
};

static __global__ void __launch_bounds__(kThreads) join_kernel(JoinArgs args) {
  __shared__ double partial[kThreads];
  const int64_t s = blockIdx.x;
  const bool even = args.each > 0;
  const int64_t first = even ? s * args.each : first_row(args.segments, s);
  const int64_t last = even ? first + args.each : last_row(args.segments, s, args.count);
  double sum = 0.0;
  for (int64_t i = first + threadIdx.x; i < last; i += kThreads) sum += args.values[i];
  partial[threadIdx.x] = sum;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (int(threadIdx.x) < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    if (args.root)
      args.out[s] = sqrt(partial[0]);
    else
      args.out[s] += partial[0];
  }
}

static __global__ void __launch_bounds__(kThreads)
    row_squares_kernel(SumsqArgs args, double* squares) {
  const int64_t row = own_row();
  if (row >= args.y.count) return;
  const int lane = int(threadIdx.x) & 31;
  const double weight = weight_of(args.segments.weight, row);
  double sum = 0.0;
  for (int64_t c = lane; weight > 0.0 && c < args.y.width; c += 32) {
    const double y = value_at(args.y, row, c) - (args.bias ? args.bias[c] : 0.0);
    sum += y * y;
  }
  sum = warp_sum(sum);
  if (lane == 0) squares[row] = weight * sum;
}

inline void sumsq(const SumsqArgs& args, const Context& context) {
  auto* squares = static_cast<double*>(context.scratch(context.owner, args.y.count * 8));
  PYEXT_LAUNCH(row_squares_kernel, row_blocks(args.y.count), kThreads, cudaStream_t(context.stream),
               args, squares);
  const JoinArgs join{args.segments, args.y.count, 0, squares, args.out, false};
  PYEXT_LAUNCH(join_kernel, unsigned(args.segments.count), kThreads, cudaStream_t(context.stream),
               join);
}

static __global__ void __launch_bounds__(kThreads)
    triangle_squares_kernel(NormArgs args, double* squares) {
  const int64_t row = own_row(), d = args.d;
  if (row >= args.count * d) return;
  const int lane = int(threadIdx.x) & 31;
  const double* values = args.grams + row * d;
  const int64_t diagonal = row % d;
  double sum = 0.0;
  for (int64_t c = lane; c < diagonal; c += 32) sum += values[c] * values[c];
  sum = warp_sum(sum);
  if (lane == 0) squares[row] = 2.0 * sum + values[diagonal] * values[diagonal];
}

inline void norm(const NormArgs& args, const Context& context) {
  auto* squares = static_cast<double*>(context.scratch(context.owner, args.count * args.d * 8));
  PYEXT_LAUNCH(triangle_squares_kernel, row_blocks(args.count * args.d), kThreads,
               cudaStream_t(context.stream), args, squares);
  const JoinArgs join{{}, args.count * args.d, args.d, squares, args.norms, true};
  PYEXT_LAUNCH(join_kernel, unsigned(args.count), kThreads, cudaStream_t(context.stream), join);
}

static __global__ void __launch_bounds__(kThreads) combine_kernel(CombineArgs args) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x, square = args.d * args.d;
  if (i >= args.modules * square) return;
  const int64_t module = i / square, place = i % square, row = place / args.d;
  const int64_t column = place % args.d;
  double sum = 0.0;
  for (int64_t n = 0; column <= row && n < args.count; ++n) {
    const double lam = args.lam[module * args.count + n];
    sum += lam * args.grams[n * square + place];
    if (column == row) sum += lam * args.gamma[module * args.count + n];
  }
  args.out[i] = sum;
}

inline void combine(const CombineArgs& args, const Context& context) {
  PYEXT_LAUNCH(combine_kernel, blocks_for(args.modules * args.d * args.d, kThreads), kThreads,
               cudaStream_t(context.stream), args);
}

}  // namespace pyext::solve::cuda
