// Rows of a gated projection, between and after their products.
#pragma once

#include "side/cpu/rows.h"

namespace pyext::PYEXT_ISA {

template <class S>
void gated_hidden(const GatedHiddenArgs<S>& args, const Context&) {
  using V = WideLanes<S>;
  const int64_t d = args.channels;
  for (int64_t i = 0; i < args.count; ++i) {
    const BiasedRow<S> u{args.product + i * d, args.bias};
    S* hidden = args.hidden + args.at(args.first + i);
    for_each_lanes(d, [&](int64_t c, auto lanes) {
      store_narrow<S>(side::activate<Activation::relu>(V(u(c, lanes))), hidden + c, lanes);
      store_narrow<Product<S>>(load_wide(hidden + c, lanes), args.copy + i * d + c, lanes);
    });
  }
}

template <class S>
void copy_rows(const CopyRowsArgs<S>& args, const Context&) {
  for (int64_t i = 0; i < args.count; ++i) {
    const S* row = args.rows + args.at(args.first + i);
    for_each_lanes(args.channels, [&](int64_t c, auto lanes) {
      store_narrow<Product<S>>(load_wide(row + c, lanes), args.copy + i * args.channels + c, lanes);
    });
  }
}

// One row of the two products, with what is added to them.
template <class S>
struct GatedRow {
  using V = WideLanes<S>;
  const Product<S>* hidden;
  BiasedRow<S> values, gates;

  GatedRow(const GatedArgs<S>& args, int64_t i)
      : hidden(args.hidden + i * args.channels),
        values{args.value + i * args.channels, args.bias2},
        gates{args.gate + i * args.channels, args.bias3} {}
  template <class Lanes_>
  PYEXT_INLINE V value(int64_t c, Lanes_ lanes) const {
    return values(c, lanes) + load_wide(hidden + c, lanes);
  }
  template <class Lanes_>
  PYEXT_INLINE V gate(int64_t c, Lanes_ lanes) const {
    return logistic(gates(c, lanes));
  }
};

template <class S>
void gated(const GatedArgs<S>& args, const Context&) {
  for (int64_t i = 0; i < args.count; ++i) {
    const GatedRow<S> row(args, i);
    S* f = args.f + args.at(args.first + i);
    for_each_lanes(args.channels, [&](int64_t c, auto lanes) {
      store_narrow<S>(row.value(c, lanes) * row.gate(c, lanes), f + c, lanes);
    });
  }
}

template <class S>
void gated_backward(const GatedBackwardArgs<S>& args, const Context&) {
  using V = WideLanes<S>;
  const GatedArgs<S>& f = args.forward;
  for (int64_t i = 0; i < f.count; ++i) {
    const GatedRow<S> row(f, i);
    const S* upstream = args.g_f + args.g_at(f.first + i);
    Product<S>*g_value = args.g_value + i * f.channels, *g_gate = args.g_gate + i * f.channels;
    for_each_lanes(f.channels, [&](int64_t c, auto lanes) {
      const V gate = row.gate(c, lanes), g = load_wide(upstream + c, lanes) * gate;
      store_narrow<Product<S>>(g, g_value + c, lanes);
      const V rest = row.value(c, lanes) * (V(Wide<S>(1)) - gate);
      store_narrow<Product<S>>(g * rest, g_gate + c, lanes);
    });
  }
}

template <class S>
void gated_join(const GatedJoinArgs<S>& args, const Context&) {
  using V = WideLanes<S>;
  for_each_lanes(args.count, [&](int64_t i, auto lanes) {
    const V g = load_wide(args.skip + i, lanes) + load_wide(args.through + i, lanes);
    const V hidden = load_wide(args.hidden + i, lanes);
    store_narrow<Product<S>>(side::activate_backward<Activation::relu>(hidden, g), args.g + i,
                             lanes);
  });
}

}  // namespace pyext::PYEXT_ISA
