// Activations and their derivatives, for a CPU vector, a scalar and a CUDA thread alike.
#pragma once

#include "core/scalar.h"

namespace pyext {

enum class Activation { none, relu, gelu, quick_gelu, silu, tanh };

template <Activation A>
struct ActivationIs {
  static constexpr Activation value = A;
};

// Calls body(ActivationIs<act>()), act one of those listed.
template <Activation... Known, class Body>
void with_activation_of(Activation act, Body body) {
  ((act == Known ? body(ActivationIs<Known>()) : void()), ...);
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
  if constexpr (A == Activation::silu) return x * logistic(x);
  if constexpr (A == Activation::tanh) return vtanh(x);
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
  if constexpr (A == Activation::quick_gelu || A == Activation::silu) {
    const V slope(A == Activation::silu ? 1.0 : kQuickSlope);
    const V s = logistic(x * slope);
    return g * (s + slope * x * s * (V(1) - s));
  }
  if constexpr (A == Activation::tanh) {
    const V y = vtanh(x);
    return g * (V(1) - y * y);
  }
  return g;
}

}  // namespace pyext
