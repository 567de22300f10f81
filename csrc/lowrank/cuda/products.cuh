// The products that low-rank adapters are made of: narrow results of wide rows, sums of wide rows,
// and sums of outer products over the rows. Every sum has one thread to itself, or one slice of
// rows and then one thread, in a fixed order.
#pragma once

#include "lowrank/cuda/threads.cuh"
#include "lowrank/kernels.h"

namespace pyext::lowrank::cuda {

constexpr int kTile = 32;       // rows and columns of a block's sums
constexpr int kDepth = 32;      // of a row that a block holds at once
constexpr int kSpreadRows = 8;  // that share what a thread reads of a factor
constexpr int kOuterColumns = 8;

template <class T>
T* scratch_values(const Context& context, int64_t count) {
  return static_cast<T*>(context.scratch(context.owner, count * int64_t(sizeof(T))));
}

// The rows of a factor [E, r, width] side by side, as columns of u; behind them those of c [E,
// width], if there is one.
template <class T>
struct FactorRows {
  const T *factor, *last;
  int64_t width;
  Adapters adapters;

  PYEXT_HD int count() const { return adapters.columns() + (last ? adapters.count : 0); }
  PYEXT_HD const T* operator()(int j) const {
    if (j >= adapters.columns()) return last + (j - adapters.columns()) * width;
    int e = 0;
    while (j >= adapters.first[e + 1]) ++e;
    return factor + (int64_t(e) * adapters.rank + j - adapters.first[e]) * width;
  }
};

// out[n][j] = sum over k of x[n][k] row(j)[k]
template <class S>
__global__ void __launch_bounds__(kThreads)
    project_kernel(const S* x, int64_t rows, FactorRows<Wide<S>> factor, int64_t column_tiles,
                   Wide<S>* out) {
  using T = Wide<S>;
  __shared__ T left[kTile][kDepth + 1], right[kTile][kDepth + 1];
  const int64_t n0 = blockIdx.x / column_tiles * kTile;
  const int j0 = int(blockIdx.x % column_tiles) * kTile, count = factor.count();
  const int row = int(threadIdx.x) / 16, column = int(threadIdx.x) % 16;
  T sums[2][2] = {};
  for (int64_t k0 = 0; k0 < factor.width; k0 += kDepth) {
    for (int i = int(threadIdx.x); i < kTile * kDepth; i += kThreads) {
      const int r = i / kDepth, k = i % kDepth;
      const bool inside = k0 + k < factor.width;
      left[r][k] = inside && n0 + r < rows ? widen(x[(n0 + r) * factor.width + k0 + k]) : T(0);
      right[r][k] = inside && j0 + r < count ? factor(j0 + r)[k0 + k] : T(0);
    }
    __syncthreads();
    for (int k = 0; k < kDepth; ++k) PYEXT_UNROLL
    for (int i = 0; i < 2; ++i) PYEXT_UNROLL
    for (int j = 0; j < 2; ++j) sums[i][j] += left[row + 16 * i][k] * right[column + 16 * j][k];
    __syncthreads();
  }
  PYEXT_UNROLL
  for (int i = 0; i < 2; ++i) PYEXT_UNROLL
  for (int j = 0; j < 2; ++j) {
    const int64_t n = n0 + row + 16 * i;
    const int own = j0 + column + 16 * j;
    if (n < rows && own < count) out[n * count + own] = sums[i][j];
  }
}

template <class S>
void project(const S* x, int64_t rows, const FactorRows<Wide<S>>& factor, Wide<S>* out,
             cudaStream_t stream) {
  const int64_t tiles = blocks_for(factor.count(), kTile);
  PYEXT_LAUNCH(project_kernel<S>, unsigned(blocks_for(rows, kTile) * tiles), kThreads, stream, x,
               rows, factor, tiles, out);
}

// y[n] = base[n] + sum over j of coefficients[n][j] row(j); without a base, zero takes its place.
template <class S>
__global__ void __launch_bounds__(kThreads)
    spread_kernel(const Wide<S>* coefficients, int64_t rows, FactorRows<Wide<S>> factor,
                  int64_t column_tiles, const S* base, S* y) {
  using T = Wide<S>;
  const int64_t n0 = blockIdx.x / column_tiles * kSpreadRows;
  const int64_t column = blockIdx.x % column_tiles * kThreads + threadIdx.x;
  const int count = factor.count();
  if (column >= factor.width) return;
  T sums[kSpreadRows];
  PYEXT_UNROLL
  for (int i = 0; i < kSpreadRows; ++i)
    sums[i] = base && n0 + i < rows ? widen(base[(n0 + i) * factor.width + column]) : T(0);
  for (int j = 0; j < count; ++j) {
    const T value = factor(j)[column];
    PYEXT_UNROLL
    for (int i = 0; i < kSpreadRows; ++i)
      if (n0 + i < rows) sums[i] += coefficients[(n0 + i) * count + j] * value;
  }
  PYEXT_UNROLL
  for (int i = 0; i < kSpreadRows; ++i)
    if (n0 + i < rows) y[(n0 + i) * factor.width + column] = narrow<S>(sums[i]);
}

template <class S>
void spread(const Wide<S>* coefficients, int64_t rows, const FactorRows<Wide<S>>& factor,
            const S* base, S* y, cudaStream_t stream) {
  const int64_t tiles = blocks_for(factor.width, kThreads);
  PYEXT_LAUNCH(spread_kernel<S>, unsigned(blocks_for(rows, kSpreadRows) * tiles), kThreads, stream,
               coefficients, rows, factor, tiles, base, y);
}

// Coefficients of rows: that of row n and term j is values[n stride + j].
template <class T>
struct Terms {
  const T* values;
  int64_t stride;
  int count;
};

// partial[slice][j][column] = sum over the slice's rows of coefficient j times x[n][column]. With a
// stride of 0 all rows are one.
template <class T, class In>
__global__ void __launch_bounds__(kThreads)
    outer_kernel(Terms<T> terms, const In* x, int64_t rows, int64_t width, int64_t stride,
                 int64_t slice_rows, T* partial) {
  const int64_t column_tiles = (width + kThreads - 1) / kThreads;
  const int64_t term_tiles = (terms.count + kOuterColumns - 1) / kOuterColumns;
  const int64_t column = blockIdx.x % column_tiles * kThreads + threadIdx.x;
  const int j0 = int(blockIdx.x / column_tiles % term_tiles) * kOuterColumns;
  const int64_t slice = blockIdx.x / column_tiles / term_tiles;
  if (column >= width) return;
  T sums[kOuterColumns] = {};
  const int64_t end = (slice + 1) * slice_rows < rows ? (slice + 1) * slice_rows : rows;
  for (int64_t n = slice * slice_rows; n < end; ++n) {
    const T value = widen(x[n * stride + column]);
    PYEXT_UNROLL
    for (int j = 0; j < kOuterColumns; ++j)
      if (j0 + j < terms.count) sums[j] += terms.values[n * terms.stride + j0 + j] * value;
  }
  PYEXT_UNROLL
  for (int j = 0; j < kOuterColumns; ++j)
    if (j0 + j < terms.count) partial[(slice * terms.count + j0 + j) * width + column] = sums[j];
}

// Adds the slices' sums, each to where `place(j, column)` says; null is nowhere.
template <class T, class Place>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const T* partial, int64_t slices, int64_t terms, int64_t width, Place place) {
  const int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (i >= terms * width) return;
  T* out = place(int(i / width), i % width);
  if (!out) return;
  T sum = T(0);
  for (int64_t s = 0; s < slices; ++s) sum += partial[s * terms * width + i];
  *out = sum;
}

constexpr int64_t kSliceRows = 256;
constexpr int64_t kMostSlices = 64;

template <class T, class In, class Place>
void outer(const Terms<T>& terms, const In* x, int64_t rows, int64_t width, int64_t stride,
           const Place& place, const Context& context) {
  const auto stream = cudaStream_t(context.stream);
  const int64_t share = (rows + kMostSlices - 1) / kMostSlices;
  const int64_t step = share < kSliceRows ? kSliceRows : share;
  const int64_t slices = (rows + step - 1) / step;
  T* partial = scratch_values<T>(context, slices * terms.count * width);
  const int64_t tiles =
      int64_t(blocks_for(width, kThreads)) * blocks_for(terms.count, kOuterColumns);
  constexpr auto sum = outer_kernel<T, In>;
  PYEXT_LAUNCH(sum, unsigned(tiles * slices), kThreads, stream, terms, x, rows, width, stride, step,
               partial);
  constexpr auto gather = gather_kernel<T, Place>;
  PYEXT_LAUNCH(gather, blocks_for(terms.count * width, kThreads), kThreads, stream, partial, slices,
               int64_t(terms.count), width, place);
}

}  // namespace pyext::lowrank::cuda
