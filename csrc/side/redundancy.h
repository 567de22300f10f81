// The weights of one token's taps, from the products between their features.
#pragma once

#include "core/macros.h"
#include "core/scalar.h"

namespace pyext::side {

// Rows 0 to taps - 1 of the matrix of products are the taps' features f_k, row `taps` is w o g, and
// row taps + 1, in the backward alone, the gradient to the result.
template <class W>
struct Redundancy {
  int64_t taps, stride;
  const W* gram;
  W b, eps_l1, eps_l2;
  // Work space, [taps] each: 1 / (|f_k| + eps_l2), or 0 for a zero vector, which is like no other;
  // redundancy; relevance by redundancy.
  W *inverse, *r, *q;

  PYEXT_HD W product(int64_t k, int64_t l) const { return gram[k * stride + l]; }
  PYEXT_HD W relevance(int64_t k) const { return product(k, taps) + b; }

  // Fills the work space and beta [taps]; returns sum q + eps_l1.
  PYEXT_HD W weights(W* beta) const {
    for (int64_t k = 0; k < taps; ++k)
      inverse[k] = product(k, k) > 0 ? W(1) / (vsqrt(product(k, k)) + eps_l2) : W(0);
    W sum = eps_l1;
    for (int64_t k = 0; k < taps; ++k) {
      W alike = 0;
      for (int64_t l = 0; l < taps; ++l) alike += vmax(product(k, l) * inverse[l], W(0));
      r[k] = inverse[k] > 0 ? alike * inverse[k] : W(1);
      q[k] = vmax(relevance(k), W(0)) / r[k];
      sum += q[k];
    }
    for (int64_t k = 0; k < taps; ++k) beta[k] = q[k] / sum;
    return sum;
  }

  // The gradient to f_k is the sum of rows l of the features, of w o g and of the gradient to the
  // result, times coefficients[k, l]. u [taps] receives the gradients to the relevances; their sum,
  // which is that to b, is returned.
  PYEXT_HD W backward(W* u, W* coefficients) const {
    const W* beta = u;
    const W sum = weights(u);
    W mean = 0, g_b = 0;
    for (int64_t k = 0; k < taps; ++k) {
      coefficients[k * stride + taps + 1] = beta[k];
      mean += product(k, taps + 1) * beta[k];
    }
    for (int64_t k = 0; k < taps; ++k) {
      const W g_q = (product(k, taps + 1) - mean) / sum;
      u[k] = relevance(k) > 0 ? g_q / r[k] : W(0);
      r[k] = -g_q * q[k] / r[k];  // from here on its gradient
      coefficients[k * stride + taps] = u[k];
      g_b += u[k];
    }
    for (int64_t k = 0; k < taps; ++k) {
      W along = 0;  // the gradient to the unit vector, times f_k
      for (int64_t l = 0; l < taps; ++l) {
        const W g = product(k, l) > 0 ? (r[k] + r[l]) * inverse[l] : W(0);
        coefficients[k * stride + l] = g * inverse[k];
        along += g * product(k, l);
      }
      if (inverse[k] > 0)
        coefficients[k * stride + k] -= along * inverse[k] * inverse[k] / vsqrt(product(k, k));
    }
    return g_b;
  }
};

}  // namespace pyext::side
