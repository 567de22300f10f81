// Gradients of a mixture. Rows are in slices whose number follows from the shapes alone: each sums
// the gradients of its parameters, and the slices' sums are added in their order.
#pragma once

#include <cstring>

#include "lowrank/cpu/mixture.h"

namespace pyext::PYEXT_ISA {

// Where the sums of a slice lie, one after another; only those asked for, of adapters not frozen.
template <class S>
struct ParameterSums {
  int64_t A, B, c, a, M, m, scale, size;

  explicit ParameterSums(const MixBackwardArgs<S>& args) {
    const MixArgs<S>& f = args.forward;
    const int64_t count = f.adapters.count, rank = f.adapters.rank;
    const int64_t trained = trained_before(f.adapters, f.adapters.count);
    A = 0;
    B = A + (args.g_A ? trained * f.in : 0);
    c = B + (args.g_B ? trained * f.out : 0);
    a = c + (args.g_c ? count * f.out : 0);
    M = a + (args.g_a ? count * rank : 0);
    m = M + (args.g_M ? count * rank * rank : 0);
    scale = m + (args.g_m ? count * rank : 0);
    size = scale + (args.g_scale ? count : 0);
  }

  // Columns of adapters before e that are not frozen.
  static int64_t trained_before(const Adapters& adapters, int e) {
    int64_t columns = 0;
    for (int i = 0; i < e; ++i) columns += adapters.frozen[i] ? 0 : adapters.rank_of(i);
    return columns;
  }
};

// One tile of rows: rank values of forward and backward, and where they go.
template <class S>
struct BackwardTile {
  using T = Wide<S>;
  const MixBackwardArgs<S>& args;
  const FactorRows<S>& factors;
  const Projection<S>& projection;
  const InnerMaps<T>&maps, &transposed;
  const ParameterSums<S>& sums;
  T *products, *v, *du;  // [kMixRows, stride]: products with B's rows and c, coefficients of B's
                         // rows, and of A's
  T* own;                // the sums of this slice

  // Rank values of row n and adapter e; `at` is where the row's begin.
  void adapter(int64_t n, int64_t at, int e) {
    const MixArgs<S>& f = args.forward;
    const int first = f.adapters.first[e], rank = f.adapters.rank_of(e);
    const int columns = f.adapters.columns(), count = f.adapters.count;
    const T* u = f.u + n * columns + first;
    T *p = products + at + first, *value = v + at + first, *g_u = du + at + first;
    const T weight = weight_of(f, n, e);
    T inside = f.c ? products[at + columns + e] : T(0);
    inner_map(f, maps, e, u, value);
    for (int i = 0; i < rank; ++i) {
      const T argument = value[i], result = activated(f.act, argument);
      inside += p[i] * result;
      p[i] = activated_backward(f.act, argument, weight * p[i]);  // to the activation's argument
      value[i] = weight * result;
    }
    if (args.g_gate) args.g_gate[n * count + e] = f.scale ? f.scale[e] * inside : inside;
    through_inner(e, u, p, g_u);
    if (f.adapters.frozen[e]) return;
    if (args.g_scale) own[sums.scale + e] += (f.gate ? f.gate[n * count + e] : T(1)) * inside;
    for (int i = 0; args.g_a && i < rank; ++i)
      own[sums.a + e * int64_t(f.adapters.rank) + i] += g_u[i];
  }

  // From the gradient to the activation's argument to that of u.
  void through_inner(int e, const T* u, const T* p, T* g_u) {
    const MixArgs<S>& f = args.forward;
    const int rank = f.adapters.rank_of(e);
    if (!f.adapters.inner[e]) {
      for (int i = 0; i < rank; ++i) g_u[i] = p[i];
      return;
    }
    transposed(e, rank, p, g_u);
    for (int i = 0; i < rank; ++i) {
      const int64_t row = e * int64_t(f.adapters.rank) + i;
      if (args.g_m) own[sums.m + row] += p[i];
      T* g_map = own + sums.M + row * f.adapters.rank;
      for (int j = 0; args.g_M && j < rank; ++j) g_map[j] += p[i] * u[j];
    }
  }

  // sums[j] += sum over the tile's rows of coefficient j times the row.
  void outer(int64_t at, int terms, int64_t width, const T* coefficients, int count,
             const S* const* rows) {
    for (int j = 0; j < terms; j += kTileRows) {
      const int some = terms - j < kTileRows ? terms - j : kTileRows;
      const RowPointers<T> out(own + at + j * width, width, some);
      add_products<T>(some, width, out.at, out.at, {coefficients + j, 1, factors.stride}, count,
                      rows, next_terms<S>(width));
    }
  }

  void parameters(int count, const S* const* x, const S* const* g_y) {
    const MixArgs<S>& f = args.forward;
    for (int e = 0; e < f.adapters.count; ++e) {
      if (f.adapters.frozen[e]) continue;
      const int first = f.adapters.first[e], rank = f.adapters.rank_of(e);
      const int64_t before = sums.trained_before(f.adapters, e);
      if (args.g_A) outer(sums.A + before * f.in, rank, f.in, du + first, count, x);
      if (args.g_B) outer(sums.B + before * f.out, rank, f.out, v + first, count, g_y);
      if (args.g_c) outer(sums.c + e * f.out, 1, f.out, v + f.adapters.columns() + e, count, g_y);
    }
  }

  // An adapter's vectors may reach into those behind it, which are written later.
  void row(int64_t n, int64_t at) {
    const MixArgs<S>& f = args.forward;
    for (int e = 0; e < f.adapters.count; ++e) adapter(n, at, e);
    T* of_c = v + at + f.adapters.columns();
    for (int e = 0; f.c && e < f.adapters.count; ++e) of_c[e] = weight_of(f, n, e);
  }

  void run(int64_t first, int count) {
    const MixArgs<S>& f = args.forward;
    const RowPointers<const S> g_y(args.g_y + first * f.out, f.out, count);
    const RowPointers<const S> x(f.x + first * f.in, f.in, count);
    projection(g_y.at, count, products, factors.stride);
    for (int i = 0; i < count; ++i) row(first + i, i * factors.stride);
    if (args.g_x) {
      const RowPointers<S> g_x(args.g_x + first * f.in, f.in, count);
      add_products<S>(count, f.in, g_x.at, nullptr, {du, factors.stride, 1}, factors.A_count,
                      factors.A, next_sums<S>(f.in));
    }
    parameters(count, x.at, g_y.at);
  }
};

constexpr int64_t kSliceRows = 8 * kTileRows;
constexpr int64_t kMostSlices = 32;
constexpr int64_t kMostSums = int64_t(16) << 20;  // values of all slices together

// Rows of a slice, a whole number of tiles.
inline int64_t slice_rows(int64_t rows, int64_t sums) {
  const int64_t room = sums ? kMostSums / sums : kMostSlices;
  const int64_t most = room < 1 ? 1 : room < kMostSlices ? room : kMostSlices;
  const int64_t least = ((rows + most - 1) / most + kTileRows - 1) / kTileRows * kTileRows;
  return least < kSliceRows ? kSliceRows : least;
}

// The slices' sums together, for all adapters; those of frozen ones are zero.
template <class S>
struct Gather {
  using T = Wide<S>;
  const MixBackwardArgs<S>& args;
  const ParameterSums<S>& sums;
  const T* partial;
  int64_t slices;

  void add(T* out, int64_t at, int64_t count) const {
    for (int64_t s = 0; s < slices; ++s) {
      const T* from = partial + s * sums.size + at;
      for (int64_t i = 0; i < count; ++i) out[i] += from[i];
    }
  }

  // A factor [E, r, width]; of frozen adapters there are no sums.
  void factor(T* out, int e, int64_t at, int64_t width) const {
    const Adapters& adapters = args.forward.adapters;
    if (!out) return;
    out += e * adapters.rank * width;
    memset(out, 0, size_t(adapters.rank * width) * sizeof(T));
    if (!adapters.frozen[e])
      add(out, at + sums.trained_before(adapters, e) * width, adapters.rank_of(e) * width);
  }

  void whole(T* out, int e, int64_t at, int64_t width) const {
    if (!out) return;
    memset(out + e * width, 0, size_t(width) * sizeof(T));
    add(out + e * width, at + e * width, width);
  }

  void adapter(int e) const {
    const MixArgs<S>& f = args.forward;
    const int64_t rank = f.adapters.rank;
    factor(args.g_A, e, sums.A, f.in);
    factor(args.g_B, e, sums.B, f.out);
    whole(args.g_c, e, sums.c, f.out);
    whole(args.g_a, e, sums.a, rank);
    whole(args.g_M, e, sums.M, rank * rank);
    whole(args.g_m, e, sums.m, rank);
    whole(args.g_scale, e, sums.scale, 1);
  }
};

template <class S>
void mix_backward(const MixBackwardArgs<S>& args, const Context& context) {
  using T = Wide<S>;
  const MixArgs<S>& f = args.forward;
  const FactorRows<S> factors(f, context);
  const ParameterSums<S> sums(args);
  const Projection<S> projection(factors.B, factors.B_count, f.out, f.stored_B, context);
  const InnerMaps<T> maps(f, true, context), transposed(f, false, context);
  const int64_t step = slice_rows(f.rows, sums.size), slices = (f.rows + step - 1) / step;
  T* partial = scratch_values<T>(context, slices * sums.size);
  memset(partial, 0, size_t(slices * sums.size) * sizeof(T));
  const int64_t tile = kMixRows<S> * factors.stride;
  T* ranks = scratch_values<T>(context, thread_count() * 3 * tile);
  auto slice = [&](int64_t index, int worker) {
    T* mine = ranks + worker * 3 * tile;
    BackwardTile<S> work{args,
                         factors,
                         projection,
                         maps,
                         transposed,
                         sums,
                         mine,
                         mine + tile,
                         mine + 2 * tile,
                         partial + index * sums.size};
    const int64_t end = (index + 1) * step < f.rows ? (index + 1) * step : f.rows;
    for (int64_t n = index * step; n < end; n += kMixRows<S>)
      work.run(n, int(end - n < kMixRows<S> ? end - n : kMixRows<S>));
  };
  parallel_tasks(slices, slice);
  const Gather<S> gather{args, sums, partial, slices};
  auto adapter = [&](int64_t e, int) { gather.adapter(int(e)); };
  parallel_tasks(f.adapters.count, adapter);
}

}  // namespace pyext::PYEXT_ISA
