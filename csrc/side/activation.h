// Activations and their derivatives, for a CPU vector, a scalar and a CUDA thread alike.
#pragma once

#include "core/scalar.h"
#include "side/kernels.h"

namespace pyext::side {

template <Activation A>
struct ActivationIs {
  static constexpr Activation value = A;
};

// Calls body(ActivationIs<act>()).
template <class Body>
void with_activation(Activation act, Body body) {
  switch (act) {
    case Activation::none:
      return body(ActivationIs<Activation::none>());
    case Activation::relu:
      return body(ActivationIs<Activation::relu>());
    case Activation::gelu:
      return body(ActivationIs<Activation::gelu>());
    case Activation::quick_gelu:
      return body(ActivationIs<Activation::quick_gelu>());
  }
}

// Whether the derivative follows from the sign of the result alone.
constexpr bool derivative_from_result(Activation act) {
  return act == Activation::none || act == Activation::relu;
}

constexpr double kQuickSlope = 1.702;

template <class V>
PYEXT_HD V logistic(V x) {
  return V(1) / (V(1) + vexp(-x));
}

template <Activation A, class V>
PYEXT_HD V activate(V x) {
  if constexpr (A == Activation::relu) return select(x > V(0), x, V(0));
  if constexpr (A == Activation::gelu)
    return x * V(0.5) * (V(1) + verf(x * V(0.70710678118654752)));
  if constexpr (A == Activation::quick_gelu) return x * logistic(x * V(kQuickSlope));
  return x;
}

// g times the derivative at x; for relu x may be the result instead.
template <Activation A, class V>
PYEXT_HD V activate_backward(V x, V g) {
  if constexpr (A == Activation::relu) return select(x > V(0), g, V(0));
  if constexpr (A == Activation::gelu) {
    const V mass = V(0.5) * (V(1) + verf(x * V(0.70710678118654752)));
    const V density = V(0.39894228040143268) * vexp(x * x * V(-0.5));
    return g * (mass + x * density);
  }
  if constexpr (A == Activation::quick_gelu) {
    const V s = logistic(x * V(kQuickSlope));
    return g * (s + V(kQuickSlope) * x * s * (V(1) - s));
  }
  return g;
}

}  // namespace pyext::side
