// Inner products of rows that may lie anywhere with rows of factors, along the rows. A product
// depends on its own two rows alone, not on those beside them.
#pragma once

#include "lowrank/cpu/products.h"

namespace pyext::PYEXT_ISA {

// Into the second-level cache: the first has no room for what is not needed at once.
template <class T>
PYEXT_INLINE void fetch(const T* p) {
  __builtin_prefetch(p, 0, 2);
}

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

// Keeps a compiler from reading an operand from memory once more for every product it is in.
template <class T>
PYEXT_INLINE void keep(Lanes<T>& a) {
#if defined(__x86_64__)
  for (int i = 0; i < Lanes<T>::kCount; ++i) asm("" : "+v"(a.r[i]));
#endif
}
#if defined(__AVX512F__)
template <>
PYEXT_INLINE void keep(Lanes<float>& a) {
  asm("" : "+v"(a.r));
}
#endif

// Columns [at, at + 16) of R rows and C factors. Meanwhile those of as many rows `next` and factors
// `later` are fetched, unless these are null.
template <int R, int C, class S, class LanesOf>
PYEXT_INLINE void dot_columns(const S* const* x, const Wide<S>* factors, int64_t width,
                              const S* const* next, const Wide<S>* later, int64_t at, LanesOf lanes,
                              WideLanes<S> (&sums)[R][C]) {
  WideLanes<S> row[R];
  PYEXT_UNROLL
  for (int i = 0; i < R; ++i) {
    if (next) fetch(next[i] + at);
    row[i] = load_wide(x[i] + at, lanes);
    keep(row[i]);
  }
  PYEXT_UNROLL
  for (int j = 0; j < C; ++j) {
    if (later) fetch(later + j * width + at);
    WideLanes<S> factor = load_wide(factors + j * width + at, lanes);
    keep(factor);
    PYEXT_UNROLL
    for (int i = 0; i < R; ++i) sums[i][j] = fma(row[i], factor, sums[i][j]);
  }
}

template <int R, int C, class S>
PYEXT_INLINE void dot_tile(const S* const* x, const Wide<S>* factors, int64_t width, Wide<S>* out,
                           int64_t stride, const S* const* next, const Wide<S>* later) {
  WideLanes<S> sums[R][C];
  PYEXT_UNROLL
  for (int i = 0; i < R; ++i) PYEXT_UNROLL
  for (int j = 0; j < C; ++j) sums[i][j] = WideLanes<S>(Wide<S>(0));
  int64_t at = 0;
  for (; at + kLanes <= width; at += kLanes)
    dot_columns<R, C>(x, factors, width, next, later, at, AllLanes(), sums);
  if (at < width)
    dot_columns<R, C>(x, factors, width, next, later, at, FirstLanes(int(width - at)), sums);
  PYEXT_UNROLL
  for (int i = 0; i < R; ++i) PYEXT_UNROLL
  for (int j = 0; j < C; ++j) out[i * stride + j] = sums[i][j].sum();
}

template <int R, class S>
void dot_rows(const S* const* x, const Wide<S>* factors, int64_t count, int64_t width, Wide<S>* out,
              int64_t stride, const S* const* next, bool first) {
  constexpr int C = kDotFactors<Wide<S>>;
  int64_t j = 0;
  const auto tile = [&](auto wide) {
    constexpr int own = decltype(wide)::value;
    // The first rows find their factors in memory, the others in a cache.
    const Wide<S>* later = first ? factors + (j + own) * width : nullptr;
    dot_tile<R, own, S>(x, factors + j * width, width, out + j, stride, j ? nullptr : next, later);
    j += own;
  };
  while (j + C <= count) tile(std::integral_constant<int, C>());
  while (j < count) tile(std::integral_constant<int, 1>());
}

template <int R, class S>
void dots_from(int i, int rows, const S* const* x, const Wide<S>* factors, int64_t count,
               int64_t width, Wide<S>* out, int64_t stride, const S* const* next) {
  for (; i + R <= rows; i += R)
    dot_rows<R>(x + i, factors, count, width, out + i * stride, stride, next ? next + i : next,
                i == 0);
  // Few rows are done at once, since that reads the factors once.
  if constexpr (R > 1) dots_from<R - 1>(i, rows, x, factors, count, width, out, stride, next);
}

// out[i][j] = x_i . factor_j of `rows` rows and `count` factors [count, width]; rows of out begin
// `stride` apart. Meanwhile the rows `next` are fetched, if there are any: as many as of x.
template <class S>
void dots(int rows, const S* const* x, const Wide<S>* factors, int64_t count, int64_t width,
          Wide<S>* out, int64_t stride, const S* const* next = nullptr) {
  dots_from<kDotRows<Wide<S>>>(0, rows, x, factors, count, width, out, stride, next);
}

}  // namespace pyext::PYEXT_ISA
