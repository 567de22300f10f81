// Sums of an adapter's factor rows, written or added to wide rows that may lie anywhere. A sum
// depends on its own row alone, not on those beside it.
#pragma once

#include "lowrank/cpu/dots.h"
#include "lowrank/cpu/mixture.h"

namespace pyext::PYEXT_ISA {

// Row i becomes its sum over j of z[j][i] W[j], with what is there if `add`.
template <class S>
struct Spread {
  using T = Wide<S>;
  const T* z;  // [rank, kTileRows]: by columns, so that one address leads to those of all rows
  int64_t rank;
  const T* W;  // [rank, width], or packed: [columns / 16, rank, 16]
  int64_t width;
  bool packed, add;
};

// Rows that begin a multiple of 4 KiB apart push each other out of the first-level cache.
template <class T>
void pack_factor(const T* W, int64_t rank, int64_t width, T* packed) {
  for (int64_t j = 0; j < rank; ++j)
    for_each_lanes(width, [&](int64_t at, auto lanes) {
      load_wide(W + j * width + at, lanes).store(packed + at * rank + j * kLanes);
    });
}

// Columns [at, at + 16 C) of R rows. Meanwhile those of the rows `next` are fetched; for the first
// rows, which find a factor in memory unless it was packed, also those of the one behind it.
template <int R, int C, class S, class LanesOf>
PYEXT_INLINE void spread_columns(const Spread<S>& own, const Wide<S>* z, S* const* y,
                                 S* const* next, bool first, int64_t at, LanesOf lanes) {
  using V = WideLanes<S>;
  const bool later = first && !own.packed;
  const int64_t row_step = own.packed ? kLanes : own.width;
  const int64_t column_step = own.packed ? own.rank : 1;
  const Wide<S>* factor = own.W + at * column_step;
  V sums[R][C];
  PYEXT_UNROLL
  for (int i = 0; i < R; ++i) PYEXT_UNROLL
  for (int k = 0; k < C; ++k) {
    fetch(next[i] + at + k * kLanes);
    sums[i][k] = own.add ? load_wide(y[i] + at + k * kLanes, lanes) : V(Wide<S>(0));
  }
  for (int64_t j = 0; j < own.rank; ++j, factor += row_step) {
    V row[C];
    PYEXT_UNROLL
    for (int k = 0; k < C; ++k) {
      if (later) fetch(factor + own.rank * own.width + k * kLanes);
      row[k] = load_wide(factor + k * kLanes * column_step, lanes);
    }
    PYEXT_UNROLL
    for (int i = 0; i < R; ++i) {
      const V times(z[j * kTileRows + i]);
      PYEXT_UNROLL
      for (int k = 0; k < C; ++k) sums[i][k] = fma(times, row[k], sums[i][k]);
    }
  }
  PYEXT_UNROLL
  for (int i = 0; i < R; ++i) PYEXT_UNROLL
  for (int k = 0; k < C; ++k) store_narrow<S>(sums[i][k], y[i] + at + k * kLanes, lanes);
}

// Tiles are tall: of the operands only the factor is read from memory.
template <int R, class S>
void spread_rows(const Spread<S>& own, const Wide<S>* z, S* const* y, S* const* next, bool first) {
  constexpr int C = kSums<Wide<S>> / R < 4 ? kSums<Wide<S>> / R : 4;
  int64_t at = 0;
  for (; at + C * kLanes <= own.width; at += C * kLanes)
    spread_columns<R, C>(own, z, y, next, first, at, AllLanes());
  for_each_lanes(own.width - at, [&](int64_t more, auto lanes) {
    spread_columns<R, 1>(own, z, y, next, first, at + more, lanes);
  });
}

template <int R, class S>
void spread_from(const Spread<S>& own, int i, int count, S* const* y, S* const* next) {
  for (; i + R <= count; i += R) spread_rows<R>(own, own.z + i, y + i, next + i, i == 0);
  // Few rows are done at once, since that reads the factor once.
  if constexpr (R > 1) spread_from<(R > 4 ? R / 2 : R - 1)>(own, i, count, y, next);
}

// The first `count` rows y. Meanwhile as many rows `next` are fetched.
template <class S>
void spread(const Spread<S>& own, int count, S* const* y, S* const* next) {
  spread_from<(kSums<Wide<S>> > 2 ? kSums<Wide<S>> / 2 : 1)>(own, 0, count, y, next);
}

}  // namespace pyext::PYEXT_ISA
