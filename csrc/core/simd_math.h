// e^x and the error function for sixteen lanes.
#pragma once

#include "core/exp2.h"

namespace pyext::PYEXT_ISA {

// Finite for all x: it does not grow beyond e^88, nor fall below e^-87.
PYEXT_INLINE Lanes<float> vexp(Lanes<float> x) {
  using V = Lanes<float>;
  return vexp2(vmin(vmax(x, V(-87.0f)), V(88.0f)) * V(1.44269504f));
}
PYEXT_INLINE Lanes<double> vexp(Lanes<double> x) {
  return each(x, [](double v) { return ::exp(v); });
}

// Abramowitz and Stegun 1964, 7.1.26: to 1.5e-7.
PYEXT_INLINE Lanes<float> verf(Lanes<float> x) {
  using V = Lanes<float>;
  const V size = vmax(x, -x);
  const V t = V(1.0f) / fma(V(0.3275911f), size, V(1.0f));
  V p = fma(V(1.061405429f), t, V(-1.453152027f));
  p = fma(p, t, V(1.421413741f));
  p = fma(p, t, V(-0.284496736f));
  p = fma(p, t, V(0.254829592f));
  const V result = V(1.0f) - p * t * vexp(-(size * size));
  return select(x < V(0.0f), -result, result);
}
PYEXT_INLINE Lanes<double> verf(Lanes<double> x) {
  return each(x, [](double v) { return ::erf(v); });
}

}  // namespace pyext::PYEXT_ISA
