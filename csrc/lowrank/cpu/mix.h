// The gated sum of low-rank adapters, a tile of rows at a time: ranks, what becomes of them, sums.
#pragma once

#include "lowrank/cpu/mixture.h"

namespace pyext::PYEXT_ISA {

// From the products with A to the coefficients of B's rows, in place.
template <class S>
PYEXT_INLINE void mix_row(const MixArgs<S>& args, int64_t n, Wide<S>* ranks) {
  using T = Wide<S>;
  const Adapters& adapters = args.adapters;
  T* u = args.u + n * adapters.columns();
  for (int e = 0; e < adapters.count; ++e) {
    const int first = adapters.first[e], rank = adapters.rank_of(e);
    for (int i = 0; i < rank; ++i)
      u[first + i] = ranks[first + i] + (args.a ? args.a[e * int64_t(adapters.rank) + i] : T(0));
    const T weight = weight_of(args, n, e);
    inner_map(args, e, u + first, ranks + first);
    for (int i = 0; i < rank; ++i)
      ranks[first + i] = weight * activated(args.act, ranks[first + i]);
  }
  for (int e = 0; args.c && e < adapters.count; ++e)
    ranks[adapters.columns() + e] = weight_of(args, n, e);
}

template <class S>
void mix_tile(const MixArgs<S>& args, const FactorRows<S>& factors, const Wide<S>* panels,
              int64_t first, Wide<S>* ranks) {
  const int count = int(args.rows - first < kTileRows ? args.rows - first : kTileRows);
  const RowPointers<const S> x(args.x + first * args.in, args.in, count);
  project(count, x.at, args.in, panels, factors.A_count, ranks, factors.stride);
  for (int i = 0; i < count; ++i) mix_row(args, first + i, ranks + i * factors.stride);
  const RowPointers<S> y(args.y + first * args.out, args.out, count);
  const RowPointers<const S> base(args.base ? args.base + first * args.out : nullptr, args.out,
                                  args.base ? count : 0);
  add_products<S>(count, args.out, y.at, args.base ? base.at : nullptr, {ranks, factors.stride, 1},
                  factors.B_count, factors.B);
}

template <class S>
void mix(const MixArgs<S>& args, const Context& context) {
  const FactorRows<S> factors(args, context);
  const Wide<S>* panels = packed(factors.A, factors.A_count, args.in, context);
  const int64_t tile = kTileRows * factors.stride;
  auto* ranks = scratch_values<Wide<S>>(context, thread_count() * tile);
  auto task = [&](int64_t index, int worker) {
    mix_tile(args, factors, panels, index * kTileRows, ranks + worker * tile);
  };
  parallel_tasks((args.rows + kTileRows - 1) / kTileRows, task);
}

}  // namespace pyext::PYEXT_ISA
