// The vocabulary that arithmetic shared by CPU vectors and CUDA threads is written in, for one
// float or double. simd.h gives the same names for a vector of sixteen.
#pragma once

#include <cmath>

#include "core/macros.h"

namespace pyext {

template <class T>
PYEXT_HD T select(bool mask, T yes, T no) {
  return mask ? yes : no;
}
PYEXT_HD float vsqrt(float x) { return ::sqrtf(x); }
PYEXT_HD double vsqrt(double x) { return ::sqrt(x); }
PYEXT_HD float vceil(float x) { return ::ceilf(x); }
PYEXT_HD double vceil(double x) { return ::ceil(x); }
PYEXT_HD float vfloor(float x) { return ::floorf(x); }
PYEXT_HD double vfloor(double x) { return ::floor(x); }
PYEXT_HD float vlog(float x) { return ::logf(x); }
PYEXT_HD double vlog(double x) { return ::log(x); }
PYEXT_HD float vexp(float x) { return ::expf(x); }
PYEXT_HD double vexp(double x) { return ::exp(x); }
PYEXT_HD float verf(float x) { return ::erff(x); }
PYEXT_HD double verf(double x) { return ::erf(x); }
PYEXT_HD float vtanh(float x) { return ::tanhf(x); }
PYEXT_HD double vtanh(double x) { return ::tanh(x); }
PYEXT_HD float vlog2(float x) { return ::log2f(x); }
PYEXT_HD float vexp2(float x) { return ::exp2f(x); }
// Like the vector instructions: the second argument where the first is not a number.
template <class T>
PYEXT_HD T vmin(T a, T b) {
  return a < b ? a : b;
}
template <class T>
PYEXT_HD T vmax(T a, T b) {
  return a > b ? a : b;
}

}  // namespace pyext
