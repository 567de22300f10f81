// The gated sum of low-rank adapters, a tile of rows at a time: ranks, what becomes of them, sums.
#pragma once

#include "lowrank/cpu/mixture.h"

namespace pyext::PYEXT_ISA {

// What all tiles share.
template <class S>
struct MixWork {
  using T = Wide<S>;
  const MixArgs<S>& args;
  FactorRows<S> factors;
  Projection<S> projection;
  InnerMaps<T> maps;
  T* bias;  // a, as the columns of u; whole vectors

  MixWork(const MixArgs<S>& args_, const Context& context)
      : args(args_),
        factors(args_, context),
        projection(factors.A, factors.A_count, args_.in, args_.stored_A, context),
        maps(args_, true, context),
        bias(scratch_values<T>(context, factors.stride)) {
    const Adapters& adapters = args.adapters;
    memset(bias, 0, size_t(factors.stride) * sizeof(T));
    for (int e = 0; args.a && e < adapters.count; ++e)
      memcpy(bias + adapters.first[e], args.a + e * int64_t(adapters.rank),
             size_t(adapters.rank_of(e)) * sizeof(T));
  }

  // From the products with A to the coefficients of B's rows, in place. An adapter's vectors may
  // reach into those behind it, which are written later.
  void row(int64_t n, T* ranks) const {
    const Adapters& adapters = args.adapters;
    const int columns = adapters.columns();
    T* u = args.u + n * columns;
    for (int at = 0; at < columns; at += kLanes)
      (Lanes<T>::load(ranks + at) + Lanes<T>::load(bias + at)).store(ranks + at);
    memcpy(u, ranks, size_t(columns) * sizeof(T));
    for (int e = 0; e < adapters.count; ++e) {
      T* v = ranks + adapters.first[e];
      inner_map(args, maps, e, u + adapters.first[e], v);
      weigh(adapters.rank_of(e), weight_of(args, n, e), v);
    }
    for (int e = 0; args.c && e < adapters.count; ++e) ranks[columns + e] = weight_of(args, n, e);
  }

  void weigh(int rank, T weight, T* v) const {
    if (args.act == Activation::none) {
      for (int at = 0; at < rank; at += kLanes)
        (Lanes<T>(weight) * Lanes<T>::load(v + at)).store(v + at);
      return;
    }
    for (int i = 0; i < rank; ++i) v[i] = weight * activated(args.act, v[i]);
  }

  void tile(int64_t first, int count, T* ranks) const {
    const RowPointers<const S> x(args.x + first * args.in, args.in, count);
    projection(x.at, count, ranks, factors.stride);
    for (int i = 0; i < count; ++i) row(first + i, ranks + i * factors.stride);
    const RowPointers<S> y(args.y + first * args.out, args.out, count);
    const RowPointers<const S> base(args.base ? args.base + first * args.out : nullptr, args.out,
                                    args.base ? count : 0);
    add_products<S>(count, args.out, y.at, args.base ? base.at : nullptr,
                    {ranks, factors.stride, 1}, factors.B_count, factors.B, next_sums<S>(args.out));
  }
};

template <class S>
void mix(const MixArgs<S>& args, const Context& context) {
  using T = Wide<S>;
  const MixWork<S> work(args, context);
  const int64_t size = kMixRows<S> * work.factors.stride;
  auto* ranks = scratch_values<T>(context, thread_count() * size);
  auto task = [&](int64_t index, int worker) {
    const int64_t first = index * kMixRows<S>, rest = args.rows - first;
    work.tile(first, int(rest < kMixRows<S> ? rest : kMixRows<S>), ranks + worker * size);
  };
  parallel_tasks((args.rows + kMixRows<S> - 1) / kMixRows<S>, task);
}

}  // namespace pyext::PYEXT_ISA
