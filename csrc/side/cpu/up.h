// Rows of the map up: from their product with the matrix to the result, and back.
#pragma once

#include "side/cpu/rows.h"
#include "side/dropout.h"

namespace pyext::PYEXT_ISA {

// What a dropout multiplies the elements of one row by.
template <class S>
struct KeptRow {
  using T = Wide<S>;
  const Dropout& dropout;
  uint64_t first;

  template <class Lanes_>
  PYEXT_INLINE WideLanes<S> operator()(int64_t i, Lanes_ lanes) const {
    if (dropout.scale == 0) return WideLanes<S>(T(1));
    const uint64_t at = first + uint64_t(i);
    const uint32_t upper = uint32_t(at >> 32), stream = dropout_stream(dropout, upper);
    T x[kLanes];
    for (int j = 0; j < kLanes; ++j)
      x[j] = kept(dropout, stream, uint32_t(at) + uint32_t(j)) ? T(dropout.scale) : T(0);
    if (uint32_t((at + kLanes - 1) >> 32) != upper)
      for (int j = 0; j < lanes; ++j) {
        const uint32_t own = dropout_stream(dropout, uint32_t((at + uint64_t(j)) >> 32));
        x[j] = kept(dropout, own, uint32_t(at + uint64_t(j))) ? T(dropout.scale) : T(0);
      }
    return WideLanes<S>::load(x);
  }
};

template <class S>
PYEXT_INLINE WideLanes<S> scale_of(const Wide<S>* scale) {
  return WideLanes<S>(scale ? *scale : Wide<S>(1));
}

template <class S>
void up(const UpArgs<S>& args, const Context&) {
  using V = WideLanes<S>;
  const int64_t E = args.channels;
  const V out_scale = scale_of<S>(args.out_scale), res_scale = scale_of<S>(args.res_scale);
  with_activation(args.post_act, [&](auto act) {
    for (int64_t i = 0; i < args.count; ++i) {
      const int64_t row = args.first + i, at = row * E;
      const BiasedRow<S> u{args.product + i * E, args.bias};
      const KeptRow<S> keep{args.dropout, uint64_t(at)};
      Moments<Wide<S>> moments{Wide<S>(0), Wide<S>(1)};
      if (args.gamma) {
        moments = moments_of<V>(E, args.eps, u);
        args.rstd[row] = moments.rstd;
      }
      for_each_lanes(E, [&](int64_t c, auto lanes) {
        V v = u(c, lanes);
        if (args.gamma) {
          v = (v - V(moments.mean)) * V(moments.rstd);
          store_narrow<S>(v, args.xhat + at + c, lanes);
          v = fma(v, load_wide(args.gamma + c, lanes), load_wide(args.beta + c, lanes));
        }
        v = side::activate<act.value>(v) * keep(c, lanes) * out_scale;
        if (args.residual) v = fma(res_scale, load_wide(args.residual + at + c, lanes), v);
        store_narrow<S>(v, args.y + at + c, lanes);
      });
    }
  });
}

// One row on its way back.
template <Activation A, class S>
struct UpRow {
  using V = WideLanes<S>;
  const UpArgs<S>& f;
  const S *g_y, *xhat;
  BiasedRow<S> u;
  KeptRow<S> keep;
  V out_scale;

  UpRow(const UpBackwardArgs<S>& args, int64_t i)
      : f(args.forward),
        g_y(args.g_y + (f.first + i) * f.channels),
        xhat(f.xhat ? f.xhat + (f.first + i) * f.channels : nullptr),
        u{f.product ? f.product + i * f.channels : nullptr, f.bias},
        keep{f.dropout, uint64_t((f.first + i) * f.channels)},
        out_scale(scale_of<S>(f.out_scale)) {}

  // What the activation is applied to.
  template <class Lanes_>
  PYEXT_INLINE V before(int64_t c, Lanes_ lanes) const {
    if (!f.gamma) return f.product ? u(c, lanes) : V(Wide<S>(0));
    return fma(load_wide(xhat + c, lanes), load_wide(f.gamma + c, lanes),
               load_wide(f.beta + c, lanes));
  }
  // The gradient to it.
  template <class Lanes_>
  PYEXT_INLINE V gradient(int64_t c, Lanes_ lanes) const {
    const V g = load_wide(g_y + c, lanes) * keep(c, lanes) * out_scale;
    return side::activate_backward<A>(before(c, lanes), g);
  }
  // What out_scale multiplies.
  template <class Lanes_>
  PYEXT_INLINE V kept_result(int64_t c, Lanes_ lanes) const {
    return side::activate<A>(before(c, lanes)) * keep(c, lanes);
  }
};

template <class S>
void up_backward(const UpBackwardArgs<S>& args, const Context&) {
  using V = WideLanes<S>;
  const UpArgs<S>& f = args.forward;
  const int64_t E = f.channels;
  with_activation(f.post_act, [&](auto act) {
    for (int64_t i = 0; i < f.count; ++i) {
      const UpRow<act.value, S> row(args, i);
      const int64_t at = (f.first + i) * E;
      Product<S>* g_product = args.g_product + i * E;
      const auto store = [&](int64_t c, auto lanes, V g) {
        store_narrow<Product<S>>(g, g_product + c, lanes);
      };
      if (f.gamma) {
        S* g_normed = args.g_normed + i * E;
        for_each_lanes(E, [&](int64_t c, auto lanes) {
          store_narrow<S>(row.gradient(c, lanes), g_normed + c, lanes);
        });
        const auto g = [&](int64_t c, auto lanes) {
          return load_wide(g_normed + c, lanes) * load_wide(f.gamma + c, lanes);
        };
        const auto xhat = [&](int64_t c, auto lanes) { return load_wide(row.xhat + c, lanes); };
        norm_backward<V>(E, f.rstd[f.first + i], g, xhat, store);
      } else {
        for_each_lanes(E, [&](int64_t c, auto lanes) { store(c, lanes, row.gradient(c, lanes)); });
      }
      if (!args.g_scales) continue;
      Wide<S>* sums = args.g_scales + (f.first + i) * 2;
      sums[0] = sums[1] = Wide<S>(0);
      if (f.res_scale)
        sums[0] = row_sum<V>(E, [&](int64_t c, auto lanes) {
          return load_wide(row.g_y + c, lanes) * load_wide(f.residual + at + c, lanes);
        });
      if (f.out_scale)
        sums[1] = row_sum<V>(E, [&](int64_t c, auto lanes) {
          return load_wide(row.g_y + c, lanes) * row.kept_result(c, lanes);
        });
    }
  });
}

}  // namespace pyext::PYEXT_ISA
