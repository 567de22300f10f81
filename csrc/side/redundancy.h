// The weights of one token's taps, from the products between their features.
#pragma once

#include "core/macros.h"
#include "core/scalar.h"

namespace pyext::side {

// Rows 0 to taps - 1 of the matrix of products are the taps' features f_k, row `taps` is w o g, and
// row taps + 1, in the backward alone, the gradient to the result. The steps that take a tap are
// done for all taps, in any order or at once, before the next step.
template <class W>
struct Redundancy {
  int64_t taps, stride;
  const W* gram;
  W b, eps_l1, eps_l2;
  W* inverse;  // [taps] 1 / (|f_k| + eps_l2), or 0 for a zero vector, which is like no other
  W* r;        // [taps] redundancy; in the backward later its gradient
  W* q;        // [taps] relevance by redundancy
  W* u;        // [taps], in the backward alone: gradients to the relevances

  // How many values of W the four arrays are, which follow one another.
  PYEXT_HD static int64_t size(int64_t taps) { return 4 * taps; }
  PYEXT_HD Redundancy(int64_t taps_, int64_t stride_, const W* gram_, W b_, W eps_l1_, W eps_l2_,
                      W* memory)
      : taps(taps_),
        stride(stride_),
        gram(gram_),
        b(b_),
        eps_l1(eps_l1_),
        eps_l2(eps_l2_),
        inverse(memory),
        r(memory + taps_),
        q(memory + 2 * taps_),
        u(memory + 3 * taps_) {}

  PYEXT_HD W product(int64_t k, int64_t l) const { return gram[k * stride + l]; }
  PYEXT_HD W relevance(int64_t k) const { return product(k, taps) + b; }

  // First step.
  PYEXT_HD void measure(int64_t k) const {
    inverse[k] = product(k, k) > 0 ? W(1) / (vsqrt(product(k, k)) + eps_l2) : W(0);
  }
  // Second step.
  PYEXT_HD void score(int64_t k) const {
    W alike = 0;
    for (int64_t l = 0; l < taps; ++l) alike += vmax(product(k, l) * inverse[l], W(0));
    r[k] = inverse[k] > 0 ? alike * inverse[k] : W(1);
    q[k] = vmax(relevance(k), W(0)) / r[k];
  }
  // After these, beta_k = q_k / total().
  PYEXT_HD W total() const {
    W sum = eps_l1;
    for (int64_t k = 0; k < taps; ++k) sum += q[k];
    return sum;
  }

  // The mean of the gradients to beta, by beta.
  PYEXT_HD W mean(W total) const {
    W sum = 0;
    for (int64_t k = 0; k < taps; ++k) sum += product(k, taps + 1) * q[k];
    return sum / total;
  }
  // Third step of the backward.
  PYEXT_HD void weigh(int64_t k, W total, W mean) const {
    const W g_q = (product(k, taps + 1) - mean) / total;
    u[k] = relevance(k) > 0 ? g_q / r[k] : W(0);
    r[k] = -g_q * q[k] / r[k];
  }
  // Last step: the gradient to f_k is the sum of rows l of the features, of w o g and of the
  // gradient to the result, times row[l].
  PYEXT_HD void combine(int64_t k, W total, W* row) const {
    W along = 0;  // the gradient to the unit vector, times f_k
    for (int64_t l = 0; l < taps; ++l) {
      const W g = product(k, l) > 0 ? (r[k] + r[l]) * inverse[l] : W(0);
      row[l] = g * inverse[k];
      along += g * product(k, l);
    }
    if (inverse[k] > 0) row[k] -= along * inverse[k] * inverse[k] / vsqrt(product(k, k));
    row[taps] = u[k];
    row[taps + 1] = q[k] / total;
  }
};

}  // namespace pyext::side
