// Rows of one tap: from its product with the matrix to h, and back.
#pragma once

#include "side/cpu/rows.h"

namespace pyext::PYEXT_ISA {

template <class S>
void project(const ProjectArgs<S>& args, const Context&) {
  using V = WideLanes<S>;
  const int64_t d = args.channels;
  with_activation(args.post_act, [&](auto act) {
    for (int64_t row = args.first; row < args.first + args.count; ++row) {
      const BiasedRow<S> u{args.product + (row - args.first) * d, args.bias};
      S* h = args.h + args.at(row);
      if (args.norm) {
        const auto [mean, rstd] = moments_of<V>(d, args.eps, u);
        args.rstd[args.stat_at(row)] = rstd;
        const V shift(mean), scale(rstd);
        for_each_lanes(d, [&](int64_t i, auto lanes) {
          store_narrow<S>((u(i, lanes) - shift) * scale, h + i, lanes);
        });
      } else {
        for_each_lanes(d, [&](int64_t i, auto lanes) {
          store_narrow<S>(side::activate<act.value>(u(i, lanes)), h + i, lanes);
        });
      }
    }
  });
}

// The gradient to h of one row, from all that was made of it.
template <class S>
struct RowGradient {
  using V = WideLanes<S>;
  const S *g_h, *h;
  const Wide<S>*g_pool, *g_sums, *g_squares;  // null where the row has none
  V share;

  RowGradient(const ProjectBackwardArgs<S>& args, int64_t row)
      : g_h(args.g_h + args.g_at(row)),
        h(args.forward.h + args.forward.at(row)),
        g_pool(nullptr),
        g_sums(nullptr),
        g_squares(nullptr),
        share(Wide<S>(0)) {
    if (args.mask && !args.mask[row]) return;
    g_sums = args.g_sums;
    g_squares = args.g_squares;
    if (!args.g_pool) return;
    const int64_t sample = args.samples ? args.samples[row] : row / args.forward.at.tokens;
    g_pool = args.g_pool + sample * args.g_pool_stride;
    share = V(args.share[sample]);
  }

  template <class Lanes_>
  PYEXT_INLINE V operator()(int64_t i, Lanes_ lanes) const {
    V g = load_wide(g_h + i, lanes);
    if (g_pool) g = fma(share, load_wide(g_pool + i, lanes), g);
    if (g_sums) g = g + load_wide(g_sums + i, lanes);
    if (g_squares) {
      const V value = load_wide(h + i, lanes);
      g = fma(value + value, load_wide(g_squares + i, lanes), g);
    }
    return g;
  }
};

template <class S>
void project_backward(const ProjectBackwardArgs<S>& args, const Context&) {
  using V = WideLanes<S>;
  const ProjectArgs<S>& f = args.forward;
  const int64_t d = f.channels;
  with_activation(f.post_act, [&](auto act) {
    for (int64_t row = f.first; row < f.first + f.count; ++row) {
      const RowGradient<S> g(args, row);
      Product<S>* out = args.g_product + (row - f.first) * d;
      const auto store = [&](int64_t i, auto lanes, V value) {
        store_narrow<Product<S>>(value, out + i, lanes);
      };
      if (f.norm) {
        const auto xhat = [&](int64_t i, auto lanes) { return load_wide(g.h + i, lanes); };
        norm_backward<V>(d, f.rstd[f.stat_at(row)], g, xhat, store);
      } else if constexpr (derivative_from_result(act.value)) {
        for_each_lanes(d, [&](int64_t i, auto lanes) {
          const V h = load_wide(g.h + i, lanes);
          store(i, lanes, side::activate_backward<act.value>(h, g(i, lanes)));
        });
      } else {
        const BiasedRow<S> u{f.product + (row - f.first) * d, f.bias};
        for_each_lanes(d, [&](int64_t i, auto lanes) {
          store(i, lanes, side::activate_backward<act.value>(u(i, lanes), g(i, lanes)));
        });
      }
    }
  });
}

}  // namespace pyext::PYEXT_ISA
