// The two products that low-rank adapters are made of, for rows that may lie anywhere: narrow
// results of wide rows (`project`), and sums of wide rows (`add_products`). A result depends on its
// own rows alone, not on those beside them.
#pragma once

#include "core/simd_half.h"
#include "core/simd_rows.h"

namespace pyext::PYEXT_ISA {

// Sums in registers at once: with the operands of a step they fill the register file.
template <class T>
constexpr int kRegistersOf = kLanes * int(sizeof(T)) / kRegisterBytes;
template <class T>
constexpr int kSums = (kRegisterBytes == 64 ? 16 : 8) / kRegistersOf<T> > 0
                          ? (kRegisterBytes == 64 ? 16 : 8) / kRegistersOf<T>
                          : 1;

constexpr int64_t kDepth = 256;  // of a row at a time: its operands fit the first-level cache
constexpr int kAhead = 512;      // bytes that rows are fetched ahead

template <class T>
PYEXT_INLINE void prefetch(const T* p) {
  __builtin_prefetch(reinterpret_cast<const char*>(p) + kAhead);
}

inline int64_t blocks_of(int64_t columns) { return (columns + kLanes - 1) / kLanes; }

// Sixteen rows as columns; null rows and what lies beyond `width` are zeros.
template <class T>
PYEXT_INLINE void load_columns(const T* const* rows, int64_t at, int width, Lanes<T>* columns) {
  T x[kLanes][kLanes] = {};
  for (int i = 0; i < kLanes; ++i)
    for (int k = 0; rows[i] && k < width; ++k) x[k][i] = rows[i][at + k];
  for (int k = 0; k < kLanes; ++k) columns[k] = Lanes<T>::load(x[k]);
}
#if defined(__AVX512F__)
template <>
PYEXT_INLINE void load_columns(const float* const* rows, int64_t at, int width, F* columns) {
  const __mmask16 inside = __mmask16((1u << width) - 1);
  __m512 x[kLanes];
  PYEXT_UNROLL
  for (int i = 0; i < kLanes; ++i)
    x[i] = rows[i] ? _mm512_maskz_loadu_ps(inside, rows[i] + at) : _mm512_setzero_ps();
  transpose(x);
  PYEXT_UNROLL
  for (int i = 0; i < kLanes; ++i) columns[i] = x[i];
}
#endif

// Rows [count][width] as panels of sixteen columns, [width][16] each.
template <class T>
void pack(const T* const* rows, int64_t count, int64_t width, T* panels) {
  for (int64_t b = 0; b < blocks_of(count); ++b) {
    const T* own[kLanes];
    for (int i = 0; i < kLanes; ++i)
      own[i] = b * kLanes + i < count ? rows[b * kLanes + i] : nullptr;
    T* panel = panels + b * width * kLanes;
    for (int64_t k = 0; k < width; k += kLanes) {
      const int inside = width - k < kLanes ? int(width - k) : kLanes;
      Lanes<T> columns[kLanes];
      load_columns(own, k, inside, columns);
      for (int i = 0; i < inside; ++i) columns[i].store(panel + (k + i) * kLanes);
    }
  }
}

// sums[i] += sum over k of x[i][k] panel[k], for R rows.
template <int R, class T>
PYEXT_INLINE void multiply_panel(const T* const* x, int64_t depth, const T* panel, T* sums,
                                 int64_t sums_stride, bool first) {
  Lanes<T> acc[R];
  PYEXT_UNROLL
  for (int i = 0; i < R; ++i)
    acc[i] = first ? Lanes<T>(T(0)) : Lanes<T>::load(sums + i * sums_stride);
  const auto step = [&](int64_t k) {
    const auto row = Lanes<T>::load(panel + k * kLanes);
    PYEXT_UNROLL
    for (int i = 0; i < R; ++i) acc[i] = fma(Lanes<T>(x[i][k]), row, acc[i]);
  };
  int64_t k = 0;
  for (; k + kLanes <= depth; k += kLanes) {
    PYEXT_UNROLL
    for (int i = 0; i < R; ++i) prefetch(x[i] + k);
    for (int j = 0; j < kLanes; ++j) step(k + j);
  }
  for (; k < depth; ++k) step(k);
  PYEXT_UNROLL
  for (int i = 0; i < R; ++i) acc[i].store(sums + i * sums_stride);
}

// The rows x in the type of the sums: themselves, or converted to `wide`, [R][kDepth].
template <int R, class S>
PYEXT_INLINE void widen_rows(const S* const* x, int64_t at, int64_t depth, Wide<S>* wide,
                             const Wide<S>** out) {
  PYEXT_UNROLL
  for (int i = 0; i < R; ++i) {
    if constexpr (std::is_same_v<S, Wide<S>>) {
      out[i] = x[i] + at;
    } else {
      out[i] = wide + i * kDepth;
      for_each_lanes(depth, [&](int64_t k, auto lanes) {
        prefetch(x[i] + at + k);
        load_wide(x[i] + at + k, lanes).store(wide + i * kDepth + k);
      });
    }
  }
}

template <int R, class S>
void project_rows(const S* const* x, int64_t width, const Wide<S>* panels, int64_t blocks,
                  Wide<S>* out, int64_t stride) {
  using T = Wide<S>;
  alignas(64) T wide[std::is_same_v<S, T> ? 1 : R * kDepth];
  for (int64_t at = 0; at < width; at += kDepth) {
    const int64_t depth = width - at < kDepth ? width - at : kDepth;
    const T* rows[R];
    widen_rows<R>(x, at, depth, wide, rows);
    for (int64_t b = 0; b < blocks; ++b)
      multiply_panel<R>(rows, depth, panels + (b * width + at) * kLanes, out + b * kLanes, stride,
                        at == 0);
  }
}

// out[i][j] = sum over k of x[i][k] w[j][k] for `count` rows and all columns of the panels, those
// that only fill up the last one among them. Rows of out begin `stride` apart.
template <class S>
void project(int count, const S* const* x, int64_t width, const Wide<S>* panels, int64_t blocks,
             Wide<S>* out, int64_t stride) {
  constexpr int kTall = kSums<Wide<S>>;
  int i = 0;
  for (; i + kTall <= count; i += kTall)
    project_rows<kTall>(x + i, width, panels, blocks, out + i * stride, stride);
  if constexpr (kTall > 4)
    for (; i + 4 <= count; i += 4)
      project_rows<4>(x + i, width, panels, blocks, out + i * stride, stride);
  for (; i < count; ++i) project_rows<1>(x + i, width, panels, blocks, out + i * stride, stride);
}

// Coefficients of a sum of rows: that of term j in sum i is values[i sum_step + j term_step].
template <class T>
struct Coefficients {
  const T* values;
  int64_t sum_step, term_step;
  PYEXT_INLINE T operator()(int i, int64_t j) const { return values[i * sum_step + j * term_step]; }
};

// Columns [at, at + 16 C) of R sums.
template <int R, int C, class Out, class In, class LanesOf>
PYEXT_INLINE void add_columns(Out* const* out, const Out* const* base, Coefficients<Wide<Out>> c,
                              int64_t terms, const In* const* rows, int64_t at, LanesOf lanes) {
  using V = WideLanes<Out>;
  V acc[R][C];
  PYEXT_UNROLL
  for (int i = 0; i < R; ++i) {
    PYEXT_UNROLL
    for (int k = 0; k < C; ++k) {
      acc[i][k] = V(Wide<Out>(0));
      if (!base) continue;
      prefetch(base[i] + at + k * kLanes);
      acc[i][k] = load_wide(base[i] + at + k * kLanes, lanes);
    }
  }
  for (int64_t j = 0; j < terms; ++j) {
    V row[C];
    PYEXT_UNROLL
    for (int k = 0; k < C; ++k) row[k] = load_wide(rows[j] + at + k * kLanes, lanes);
    PYEXT_UNROLL
    for (int i = 0; i < R; ++i) {
      const V factor(c(i, j));
      PYEXT_UNROLL
      for (int k = 0; k < C; ++k) acc[i][k] = fma(factor, row[k], acc[i][k]);
    }
  }
  PYEXT_UNROLL
  for (int i = 0; i < R; ++i) {
    PYEXT_UNROLL
    for (int k = 0; k < C; ++k) store_narrow<Out>(acc[i][k], out[i] + at + k * kLanes, lanes);
  }
}

template <int R, class Out, class In>
void add_rows(int64_t width, Out* const* out, const Out* const* base, Coefficients<Wide<Out>> c,
              int64_t terms, const In* const* rows) {
  constexpr int kWide = kSums<Wide<Out>> / 4 > 0 ? kSums<Wide<Out>> / 4 : 1;
  int64_t at = 0;
  for (; at + kWide * kLanes <= width; at += kWide * kLanes)
    add_columns<R, kWide>(out, base, c, terms, rows, at, AllLanes());
  for (; at + kLanes <= width; at += kLanes)
    add_columns<R, 1>(out, base, c, terms, rows, at, AllLanes());
  if (at < width) add_columns<R, 1>(out, base, c, terms, rows, at, FirstLanes(int(width - at)));
}

// out[i] = base[i] + sum over j of c(i, j) rows[j], for `count` sums of rows `width` wide; without
// a base, zero takes its place. A base may be the sum's own place.
template <class Out, class In>
void add_products(int count, int64_t width, Out* const* out, const Out* const* base,
                  Coefficients<Wide<Out>> c, int64_t terms, const In* const* rows) {
  int i = 0;
  const auto step = [&](auto tall) {
    constexpr int R = decltype(tall)::value;
    const Coefficients<Wide<Out>> own{c.values + i * c.sum_step, c.sum_step, c.term_step};
    add_rows<R>(width, out + i, base ? base + i : nullptr, own, terms, rows);
    i += R;
  };
  while (i + 4 <= count) step(std::integral_constant<int, 4>());
  while (i < count) step(std::integral_constant<int, 1>());
}

}  // namespace pyext::PYEXT_ISA
