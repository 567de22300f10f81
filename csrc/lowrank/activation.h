// The activations of the family `lowrank`. Rank intermediates are few: they are activated one by
// one.
#pragma once

#include "core/activation.h"

namespace pyext::lowrank {

template <class Body>
PYEXT_HD void each_activation(Activation act, Body body) {
  switch (act) {
    case Activation::relu:
      return body(ActivationIs<Activation::relu>());
    case Activation::gelu:
      return body(ActivationIs<Activation::gelu>());
    case Activation::silu:
      return body(ActivationIs<Activation::silu>());
    case Activation::tanh:
      return body(ActivationIs<Activation::tanh>());
    default:
      return body(ActivationIs<Activation::none>());
  }
}

template <class T>
PYEXT_HD T activated(Activation act, T x) {
  T y = x;
  each_activation(act, [&](auto a) { y = activate<a.value>(x); });
  return y;
}

// g times the derivative at x.
template <class T>
PYEXT_HD T activated_backward(Activation act, T x, T g) {
  T result = g;
  each_activation(act, [&](auto a) { result = activate_backward<a.value>(x, g); });
  return result;
}

}  // namespace pyext::lowrank
