// Products of matrices, in tiles that stay in a core's cache. Both operands lie in panels of
// sixteen columns, [depth][16] each, of double or float; Gram matrices, cross products and the
// trailing update of a Cholesky decomposition are all made of these tiles, and are double.
#pragma once

#include "core/parallel.h"
#include "core/simd.h"

namespace pyext::PYEXT_ISA {

using D = Lanes<double>;

// Rows of a tile in registers at once: sums, one row of the right operand and a broadcast value
// fill the register file. It holds twice as many floats.
constexpr int kTall = kRegisterBytes == 64 ? 8 : kRegisterBytes == 32 ? 2 : 1;
template <class T>
constexpr int kTallOf = kTall * int(sizeof(double) / sizeof(T));
constexpr int64_t kTile = 128;  // rows and columns of what one task computes

inline int64_t panels_of(int64_t columns) { return (columns + kLanes - 1) / kLanes; }

// Calls body(index, worker), by the threads there are or by this one alone.
template <class Body>
void for_tasks(bool parallel, int64_t tasks, Body body) {
  if (parallel) return parallel_tasks(tasks, body);
  for (int64_t i = 0; i < tasks; ++i) body(i, 0);
}

// sums[i] += sum over k of a[i a_row + k a_step] b[16 k ...].
template <class T>
PYEXT_INLINE void multiply(int64_t depth, const T* a, int64_t a_row, int64_t a_step, const T* b,
                           Lanes<T> (&sums)[kTallOf<T>]) {
  for (int64_t k = 0; k < depth; ++k) {
    const auto row = Lanes<T>::load(b + k * kLanes);
    PYEXT_UNROLL
    for (int i = 0; i < kTallOf<T>; ++i)
      sums[i] = fma(Lanes<T>(a[i * a_row + k * a_step]), row, sums[i]);
  }
}

PYEXT_INLINE D to_double(D x) { return x; }
PYEXT_INLINE D to_double(Lanes<float> x) {
  float narrow[kLanes];
  x.store(narrow);
  double wide[kLanes];
  for (int i = 0; i < kLanes; ++i) wide[i] = double(narrow[i]);
  return D::load(wide);
}

// A matrix that products are added to.
struct Sums {
  double* values;
  int64_t stride, rows, columns;
  bool lower;  // the lower triangle only
};

// Adds, or subtracts, what as many rows as fit and a panel's columns have. Whole rows that are
// inside take vectors.
template <bool Subtract, class T>
PYEXT_INLINE void add_sums(const Sums& out, int64_t row, int64_t column,
                           const Lanes<T> (&sums)[kTallOf<T>]) {
  PYEXT_UNROLL
  for (int i = 0; i < kTallOf<T>; ++i) {
    if (row + i >= out.rows) break;
    double* target = out.values + (row + i) * out.stride + column;
    const int64_t end = out.lower ? row + i + 1 : out.columns;
    const int64_t inside = (end < out.columns ? end : out.columns) - column;
    const D sum = to_double(sums[i]);
    if (inside >= kLanes) {
      const D old = D::load(target);
      (Subtract ? old - sum : old + sum).store(target);
      continue;
    }
    double values[kLanes];
    sum.store(values);
    for (int64_t j = 0; j < inside; ++j) target[j] += Subtract ? -values[j] : values[j];
  }
}

// Adds left^T right of one tile; panels of both are `step` values apart and `depth` deep.
template <bool Subtract, class T>
inline void add_tile(const Sums& out, int64_t tile_row, int64_t tile_column, const T* left,
                     const T* right, int64_t step, int64_t depth) {
  constexpr int kRows = kTallOf<T>;
  const int64_t row_end = tile_row + kTile < out.rows ? tile_row + kTile : out.rows;
  const int64_t end = tile_column + kTile < out.columns ? tile_column + kTile : out.columns;
  for (int64_t row = tile_row; row < row_end; row += kRows) {
    const T* a = left + row / kLanes * step + row % kLanes;
    const int64_t last = row + kRows;
    const int64_t column_end = out.lower && last < end ? last : end;
    for (int64_t column = tile_column; column < column_end; column += kLanes) {
      Lanes<T> sums[kRows];
      PYEXT_UNROLL
      for (int i = 0; i < kRows; ++i) sums[i] = Lanes<T>(T(0));
      multiply(depth, a, 1, kLanes, right + column / kLanes * step, sums);
      add_sums<Subtract>(out, row, column, sums);
    }
  }
}

// The tiles of a matrix, or of its lower triangle, by their number.
struct Tiles {
  int64_t rows, columns;
  bool lower;

  explicit Tiles(const Sums& out)
      : rows((out.rows + kTile - 1) / kTile),
        columns((out.columns + kTile - 1) / kTile),
        lower(out.lower) {}
  int64_t count() const { return lower ? rows * (rows + 1) / 2 : rows * columns; }
  // Later rows have more tiles and come first, so that the last tasks are small.
  void at(int64_t index, int64_t& row, int64_t& column) const {
    if (!lower) {
      row = index / columns, column = index % columns;
      return;
    }
    row = rows - 1;
    for (; index > row; --row) index -= row + 1;
    column = index;
  }
};

}  // namespace pyext::PYEXT_ISA
