// The activations of the family `side`.
#pragma once

#include "core/activation.h"

namespace pyext::side {

using pyext::activate;
using pyext::activate_backward;

// Calls body(ActivationIs<act>()).
template <class Body>
void with_activation(Activation act, Body body) {
  with_activation_of<Activation::none, Activation::relu, Activation::gelu, Activation::quick_gelu>(
      act, body);
}

// Whether the derivative follows from the sign of the result alone.
constexpr bool derivative_from_result(Activation act) {
  return act == Activation::none || act == Activation::relu;
}

}  // namespace pyext::side
