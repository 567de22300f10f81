// What a noisy top-k gate computes of one logit, on the CPU and in a CUDA thread alike.
#pragma once

#include <cstdint>

#include "core/scalar.h"

namespace pyext::lowrank {

PYEXT_HD float vlog1p(float x) { return ::log1pf(x); }
PYEXT_HD double vlog1p(double x) { return ::log1p(x); }

// Beyond this softplus is taken for its argument, as in PyTorch.
constexpr double kSoftplusEnd = 20.0;

template <class T>
PYEXT_HD T softplus(T x) {
  return x > T(kSoftplusEnd) ? x : vlog1p(vexp(x));
}

template <class T>
PYEXT_HD T softplus_slope(T x) {
  return x > T(kSoftplusEnd) ? T(1) : T(1) / (T(1) + vexp(-x));
}

// As sorting does, what is not a number for the largest.
template <class T>
PYEXT_HD bool is_larger(T a, T b) {
  return a > b || (a != a && b == b);
}

// Whether logit e is among the `topk` largest; of equal ones the first are.
template <class T>
PYEXT_HD bool is_kept(const T* logits, int64_t experts, int64_t topk, int64_t e) {
  if (topk == experts) return true;
  int64_t before = 0;
  for (int64_t j = 0; j < experts; ++j)
    before += j < e ? !is_larger(logits[e], logits[j]) : is_larger(logits[j], logits[e]);
  return before < topk;
}

}  // namespace pyext::lowrank
