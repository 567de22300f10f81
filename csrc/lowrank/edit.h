// One rank value of an edit and its gradient, on the CPU and in a CUDA thread alike.
#pragma once

#include "lowrank/activation.h"

namespace pyext::lowrank {

// What B spreads onto a row h: f(A h + a), f(A h + a) - B h, or f(A h + a - B h).
enum class Form { add, reft, mrt };

template <class T>
struct RankValue {
  T z, u;  // what the activation is of, and what is spread
};

// Of A h + a and B h.
template <class T>
PYEXT_HD RankValue<T> edit_of(Form form, Activation act, T into, T inside) {
  const T z = form == Form::mrt ? into - inside : into;
  const T u = activated(act, z);
  return {z, form == Form::reft ? u - inside : u};
}

template <class T>
struct RankGradient {
  T into, inside;  // to A h + a and to B h
};

template <class T>
PYEXT_HD RankGradient<T> edit_backward(Form form, Activation act, T z, T g_u) {
  const T into = activated_backward(act, z, g_u);
  if (form == Form::add) return {into, T(0)};
  return {into, form == Form::reft ? -g_u : -into};
}

}  // namespace pyext::lowrank
