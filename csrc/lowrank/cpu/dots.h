// Inner products of rows that may lie anywhere with rows of factors, along the rows. A product
// depends on its own two rows alone, not on those beside them.
#pragma once

#include "lowrank/cpu/products.h"

namespace pyext::PYEXT_ISA {

// Pointers to rows without gaps.
template <class P>
void list_rows(P* rows, int64_t count, int64_t width, P** out) {
  for (int64_t i = 0; i < count; ++i) out[i] = rows + i * width;
}

// Rows and factors of a tile: as many sums as registers hold.
template <class T>
constexpr int kDotRows = kSums<T> >= 16  ? 4
                         : kSums<T> >= 4 ? 2
                                         : 1;
template <class T>
constexpr int kDotFactors = kSums<T> / kDotRows<T>;

template <int R, int C, class S>
PYEXT_INLINE void dot_tile(const S* const* x, const Wide<S>* factors, int64_t width, Wide<S>* out,
                           int64_t stride) {
  using V = WideLanes<S>;
  V sums[R][C];
  PYEXT_UNROLL
  for (int i = 0; i < R; ++i) PYEXT_UNROLL
  for (int j = 0; j < C; ++j) sums[i][j] = V(Wide<S>(0));
  for_each_lanes(width, [&](int64_t at, auto lanes) {
    V row[R];
    PYEXT_UNROLL
    for (int i = 0; i < R; ++i) row[i] = load_wide(x[i] + at, lanes);
    PYEXT_UNROLL
    for (int j = 0; j < C; ++j) {
      const V factor = load_wide(factors + j * width + at, lanes);
      PYEXT_UNROLL
      for (int i = 0; i < R; ++i) sums[i][j] = fma(row[i], factor, sums[i][j]);
    }
  });
  PYEXT_UNROLL
  for (int i = 0; i < R; ++i) PYEXT_UNROLL
  for (int j = 0; j < C; ++j) out[i * stride + j] = sums[i][j].sum();
}

template <int R, class S>
void dot_rows(const S* const* x, const Wide<S>* factors, int64_t count, int64_t width, Wide<S>* out,
              int64_t stride) {
  constexpr int C = kDotFactors<Wide<S>>;
  int64_t j = 0;
  for (; j + C <= count; j += C) dot_tile<R, C>(x, factors + j * width, width, out + j, stride);
  for (; j < count; ++j) dot_tile<R, 1>(x, factors + j * width, width, out + j, stride);
}

// out[i][j] = x_i . factor_j of `rows` rows and `count` factors [count, width]; rows of out begin
// `stride` apart.
template <class S>
void dots(int rows, const S* const* x, const Wide<S>* factors, int64_t count, int64_t width,
          Wide<S>* out, int64_t stride) {
  constexpr int R = kDotRows<Wide<S>>;
  int i = 0;
  for (; i + R <= rows; i += R) dot_rows<R>(x + i, factors, count, width, out + i * stride, stride);
  for (; i < rows; ++i) dot_rows<1>(x + i, factors, count, width, out + i * stride, stride);
}

}  // namespace pyext::PYEXT_ISA
