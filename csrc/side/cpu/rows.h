// What is done to a row of a product: bias, norm, and their gradients.
#pragma once

#include "core/simd_half.h"
#include "core/simd_math.h"
#include "side/activation.h"
#include "side/kernels.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::side;

// A row of a product of S, plus a bias where there is one.
template <class S>
struct BiasedRow {
  const Product<S>* product;
  const S* bias;

  template <class Lanes_>
  PYEXT_INLINE WideLanes<S> operator()(int64_t i, Lanes_ lanes) const {
    const WideLanes<S> u = load_wide(product + i, lanes);
    return bias ? u + load_wide(bias + i, lanes) : u;
  }
};

// Sum of value(i, lanes) over a row's channels; lanes beyond the row must be zero. Two sums at once
// hide the latency of one.
template <class V, class Value>
PYEXT_INLINE typename V::Scalar row_sum(int64_t channels, Value value) {
  using T = typename V::Scalar;
  V even{T(0)}, odd{T(0)};
  int64_t i = 0;
  for (; i + 2 * kLanes <= channels; i += 2 * kLanes) {
    even = even + value(i, AllLanes());
    odd = odd + value(i + kLanes, AllLanes());
  }
  for_each_lanes(channels - i, [&](int64_t j, auto lanes) { even = even + value(i + j, lanes); });
  return (even + odd).sum();
}

template <class T>
struct Moments {
  T mean, rstd;
};

// Mean and 1 / sigma of a row.
template <class V, class Row>
PYEXT_INLINE Moments<typename V::Scalar> moments_of(int64_t channels, double eps, const Row& row) {
  using T = typename V::Scalar;
  const T mean = row_sum<V>(channels, row) / T(channels);
  const T square = row_sum<V>(channels, [&](int64_t i, auto lanes) {
    const V centred = row(i, lanes) - V(mean);
    return select(Mask<T>::first(lanes), centred * centred, V(T(0)));
  });
  return {mean, T(1) / pyext::vsqrt(square / T(channels) + T(eps))};
}

// The gradient to a row before its norm: rstd (g - mean(g) - xhat mean(g xhat)), for the gradient
// g(i, lanes) to what the norm gives, xhat(i, lanes). Calls store(i, lanes, gradient).
template <class V, class Upstream, class Normed, class Store>
PYEXT_INLINE void norm_backward(int64_t channels, typename V::Scalar rstd, const Upstream& g,
                                const Normed& xhat, Store store) {
  using T = typename V::Scalar;
  const V mean(row_sum<V>(channels, g) / T(channels));
  const T product =
      row_sum<V>(channels, [&](int64_t i, auto lanes) { return g(i, lanes) * xhat(i, lanes); });
  const V along(product / T(channels));
  for_each_lanes(channels, [&](int64_t i, auto lanes) {
    store(i, lanes, (g(i, lanes) - mean - xhat(i, lanes) * along) * V(rstd));
  });
}

}  // namespace pyext::PYEXT_ISA
