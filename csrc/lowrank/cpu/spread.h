// Sums of an adapter's factor rows, written or added to wide rows that may lie anywhere. A sum
// depends on its own row alone, not on those beside it.
#pragma once

#include "lowrank/cpu/dots.h"

namespace pyext::PYEXT_ISA {

// Row i becomes its sum over j of z[i][j] W[j], with what is there if `add`.
template <class S>
struct Spread {
  using T = Wide<S>;
  const T* z;  // [rows, rank]
  int64_t rank;
  const T* W;  // [rank, width]
  int64_t width;
  bool add;
};

// Columns [at, at + 16 C) of R rows. Meanwhile those of the rows `next` are fetched; for the first
// rows, which find their factor in memory, also those of the factor behind it.
template <int R, int C, class S, class LanesOf>
PYEXT_INLINE void spread_columns(const Spread<S>& own, const Wide<S>* z, S* const* y,
                                 S* const* next, bool first, int64_t at, LanesOf lanes) {
  using V = WideLanes<S>;
  V sums[R][C];
  PYEXT_UNROLL
  for (int i = 0; i < R; ++i) PYEXT_UNROLL
  for (int k = 0; k < C; ++k) {
    fetch(next[i] + at + k * kLanes);
    sums[i][k] = own.add ? load_wide(y[i] + at + k * kLanes, lanes) : V(Wide<S>(0));
  }
  for (int64_t j = 0; j < own.rank; ++j) {
    const Wide<S>* factor_row = own.W + j * own.width + at;
    V row[C];
    PYEXT_UNROLL
    for (int k = 0; k < C; ++k) {
      if (first) fetch(factor_row + own.rank * own.width + k * kLanes);
      row[k] = load_wide(factor_row + k * kLanes, lanes);
    }
    PYEXT_UNROLL
    for (int i = 0; i < R; ++i) {
      const V factor(z[i * own.rank + j]);
      PYEXT_UNROLL
      for (int k = 0; k < C; ++k) sums[i][k] = fma(factor, row[k], sums[i][k]);
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
  for (; i + R <= count; i += R) spread_rows<R>(own, own.z + i * own.rank, y + i, next + i, i == 0);
  // Few rows are done at once, since that reads the factor once.
  if constexpr (R > 1) spread_from<(R > 4 ? R / 2 : R - 1)>(own, i, count, y, next);
}

// The first `count` rows y. Meanwhile as many rows `next` are fetched.
template <class S>
void spread(const Spread<S>& own, int count, S* const* y, S* const* next) {
  spread_from<(kSums<Wide<S>> > 2 ? kSums<Wide<S>> / 2 : 1)>(own, 0, count, y, next);
}

}  // namespace pyext::PYEXT_ISA
