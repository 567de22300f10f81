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
constexpr int64_t kAhead = 512;  // bytes that a row is fetched ahead, by itself

// Fetches what lies `ahead` bytes behind p.
template <class T>
PYEXT_INLINE void prefetch(const T* p, int64_t ahead) {
  __builtin_prefetch(reinterpret_cast<const char*>(p) + ahead);
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

// What a panel's columns are computed with: all its lanes, or the first eight, which take half as
// long, where it has no more.
template <class T, bool Narrow>
struct PanelLanes {
  using type = Lanes<T>;
};
#if defined(__AVX2__)
struct EightLanes {
  __m256 r;
  EightLanes() = default;
  PYEXT_INLINE EightLanes(float x) : r(_mm256_set1_ps(x)) {}
  PYEXT_INLINE EightLanes(__m256 x) : r(x) {}
  static PYEXT_INLINE EightLanes load(const float* p) { return _mm256_loadu_ps(p); }
  PYEXT_INLINE void store(float* p) const { _mm256_storeu_ps(p, r); }
};
PYEXT_INLINE EightLanes fma(EightLanes a, EightLanes b, EightLanes c) {
  return _mm256_fmadd_ps(a.r, b.r, c.r);
}
template <>
struct PanelLanes<float, true> {
  using type = EightLanes;
};
#endif

// sums[i] += sum over k of x[i][k] panel[k], for R rows and the lanes of V.
template <class V, int R, class T>
PYEXT_INLINE void multiply_panel(const T* const* x, int64_t depth, const T* panel, T* sums,
                                 int64_t sums_stride, bool first, int64_t ahead) {
  V acc[R];
  PYEXT_UNROLL
  for (int i = 0; i < R; ++i) acc[i] = first ? V(T(0)) : V::load(sums + i * sums_stride);
  const auto step = [&](int64_t k) {
    const auto row = V::load(panel + k * kLanes);
    PYEXT_UNROLL
    for (int i = 0; i < R; ++i) acc[i] = fma(V(x[i][k]), row, acc[i]);
  };
  int64_t k = 0;
  for (; k + kLanes <= depth; k += kLanes) {
    PYEXT_UNROLL
    for (int i = 0; i < R; ++i) prefetch(x[i] + k, ahead);
    for (int j = 0; j < kLanes; ++j) step(k + j);
  }
  for (; k < depth; ++k) step(k);
  PYEXT_UNROLL
  for (int i = 0; i < R; ++i) acc[i].store(sums + i * sums_stride);
}

// The rows x in the type of the sums: themselves, or converted to `wide`, [R][kDepth].
template <int R, class S>
PYEXT_INLINE void widen_rows(const S* const* x, int64_t at, int64_t depth, Wide<S>* wide,
                             const Wide<S>** out, int64_t ahead) {
  PYEXT_UNROLL
  for (int i = 0; i < R; ++i) {
    if constexpr (std::is_same_v<S, Wide<S>>) {
      out[i] = x[i] + at;
    } else {
      out[i] = wide + i * kDepth;
      for_each_lanes(depth, [&](int64_t k, auto lanes) {
        prefetch(x[i] + at + k, ahead);
        load_wide(x[i] + at + k, lanes).store(wide + i * kDepth + k);
      });
    }
  }
}

template <int R, class S>
void project_rows(const S* const* x, int64_t width, const Wide<S>* panels, int64_t columns,
                  Wide<S>* out, int64_t stride, int64_t ahead) {
  using T = Wide<S>;
  alignas(64) T wide[std::is_same_v<S, T> ? 1 : R * kDepth];
  for (int64_t at = 0; at < width; at += kDepth) {
    const int64_t depth = width - at < kDepth ? width - at : kDepth;
    const T* rows[R];
    widen_rows<R>(x, at, depth, wide, rows, ahead);
    for (int64_t b = 0; b < columns; b += kLanes) {
      const T* panel = panels + b * width + at * kLanes;
      if (columns - b <= kLanes / 2)
        multiply_panel<typename PanelLanes<T, true>::type, R>(rows, depth, panel, out + b, stride,
                                                              at == 0, ahead);
      else
        multiply_panel<Lanes<T>, R>(rows, depth, panel, out + b, stride, at == 0, ahead);
    }
  }
}

// Calls body(first, R), R a constant, for groups of R of `count` rows: as many as there are sums
// in registers, then four, then one.
template <class T, class Body>
PYEXT_INLINE void for_row_groups(int count, Body body) {
  constexpr int kTall = kSums<T>;
  int i = 0;
  for (; i + kTall <= count; i += kTall) body(i, std::integral_constant<int, kTall>());
  if constexpr (kTall > 4)
    for (; i + 4 <= count; i += 4) body(i, std::integral_constant<int, 4>());
  for (; i < count; ++i) body(i, std::integral_constant<int, 1>());
}

// out[i][j] = sum over k of x[i][k] w[j][k] for `count` rows and columns of the panels; what the
// last panel has beyond them is filled, too. Rows of out begin `stride` apart. As a row is read,
// what lies `ahead` bytes behind is fetched.
template <class S>
void project(int count, const S* const* x, int64_t width, const Wide<S>* panels, int64_t columns,
             Wide<S>* out, int64_t stride, int64_t ahead) {
  for_row_groups<Wide<S>>(count, [&](int i, auto rows) {
    project_rows<decltype(rows)::value>(x + i, width, panels, columns, out + i * stride, stride,
                                        ahead);
  });
}

// Coefficients of a sum of rows: that of term j in sum i is values[i sum_step + j term_step].
template <class T>
struct Coefficients {
  const T* values;
  int64_t sum_step, term_step;
  PYEXT_INLINE T operator()(int i, int64_t j) const { return values[i * sum_step + j * term_step]; }
};

// What is fetched while rows are added up, `bytes` behind what is read: of the base, or of the
// terms, whichever of them comes from far.
struct Ahead {
  bool terms;
  int64_t bytes;
};

constexpr int kSumRows = 4;  // that are summed together, where the base comes from far
// And where the terms do, each of which is then read once for eight sums.
template <class T>
constexpr int kFarSumRows = kSums<T> >= 16 ? 8 : kSumRows;
// Vectors that a cache line holds.
template <class S>
constexpr int kLineLanes = 64 > kLanes* int(sizeof(S)) ? 64 / (kLanes * int(sizeof(S))) : 1;

// Columns [at, at + 16 C) of R sums.
template <int R, int C, bool FetchTerms, class Out, class In, class LanesOf>
PYEXT_INLINE void add_columns(Out* const* out, const Out* const* base, Coefficients<Wide<Out>> c,
                              int64_t terms, const In* const* rows, int64_t at, int64_t ahead,
                              LanesOf lanes) {
  using V = WideLanes<Out>;
  V acc[R][C];
  PYEXT_UNROLL
  for (int i = 0; i < R; ++i) {
    PYEXT_UNROLL
    for (int k = 0; k < C; ++k) {
      acc[i][k] = V(Wide<Out>(0));
      if (!base) continue;
      if constexpr (!FetchTerms) prefetch(base[i] + at + k * kLanes, ahead);
      acc[i][k] = load_wide(base[i] + at + k * kLanes, lanes);
    }
  }
  for (int64_t j = 0; j < terms; ++j) {
    V row[C];
    if constexpr (FetchTerms)
      for (int k = 0; k < C; k += kLineLanes<In>) prefetch(rows[j] + at + k * kLanes, ahead);
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

template <int R, bool FetchTerms, class Out, class In>
void add_rows(int64_t width, Out* const* out, const Out* const* base, Coefficients<Wide<Out>> c,
              int64_t terms, const In* const* rows, int64_t ahead) {
  constexpr int kTall = R > kSumRows ? R : kSumRows;
  constexpr int kWide = kSums<Wide<Out>> / kTall > 0 ? kSums<Wide<Out>> / kTall : 1;
  int64_t at = 0;
  for (; at + kWide * kLanes <= width; at += kWide * kLanes)
    add_columns<R, kWide, FetchTerms>(out, base, c, terms, rows, at, ahead, AllLanes());
  for (; at + kLanes <= width; at += kLanes)
    add_columns<R, 1, FetchTerms>(out, base, c, terms, rows, at, ahead, AllLanes());
  if (at < width)
    add_columns<R, 1, FetchTerms>(out, base, c, terms, rows, at, ahead,
                                  FirstLanes(int(width - at)));
}

// out[i] = base[i] + sum over j of c(i, j) rows[j], for `count` sums of rows `width` wide; without
// a base, zero takes its place. A base may be the sum's own place.
template <class Out, class In>
void add_products(int count, int64_t width, Out* const* out, const Out* const* base,
                  Coefficients<Wide<Out>> c, int64_t terms, const In* const* rows,
                  Ahead ahead = {false, kAhead}) {
  int i = 0;
  const auto step = [&](auto tall, auto far_terms) {
    constexpr int R = decltype(tall)::value;
    const Coefficients<Wide<Out>> own{c.values + i * c.sum_step, c.sum_step, c.term_step};
    add_rows<R, decltype(far_terms)::value>(width, out + i, base ? base + i : nullptr, own, terms,
                                            rows, ahead.bytes);
    i += R;
  };
  const auto steps = [&](auto far_terms) {
    constexpr int kFar = decltype(far_terms)::value ? kFarSumRows<Wide<Out>> : kSumRows;
    while (i + kFar <= count) step(std::integral_constant<int, kFar>(), far_terms);
    if constexpr (kFar > kSumRows)
      while (i + kSumRows <= count) step(std::integral_constant<int, kSumRows>(), far_terms);
    while (i < count) step(std::integral_constant<int, 1>(), far_terms);
  };
  if (ahead.terms)
    steps(std::true_type());
  else
    steps(std::false_type());
}

}  // namespace pyext::PYEXT_ISA
