// Arguments of the kernels that mix taps, across tokens and inside a token: see kernels.h.
#pragma once

#include <cstdint>

#include "core/half.h"
#include "side/product.h"

namespace pyext::side {

// F = a o h + c, of some samples and taps.
template <class S>
struct FeaturesArgs {
  int64_t samples, taps, tokens, channels;
  const S* h;
  int64_t sample_stride, tap_stride, token_stride;  // of h; channels lie side by side
  const Wide<S>*a, *c;                              // [taps, d] or null
  Product<S>* features;                             // [samples, taps, tokens, d] out

  PYEXT_HD int64_t at(int64_t sample, int64_t tap, int64_t token) const {
    return sample * sample_stride + tap * tap_stride + token * token_stride;
  }
};

template <class S>
struct FeaturesBackwardArgs {
  FeaturesArgs<S> forward;                          // its features are not read
  const Product<S>* g_features;                     // [samples, taps, tokens, d]
  S* g_h;                                           // out
  int64_t sample_stride, tap_stride, token_stride;  // of g_h
  Wide<S>*g_a, *g_c;   // [taps, d] a sample, out or null: sums over its tokens
  int64_t sum_stride;  // from a sample to the next, of both

  PYEXT_HD int64_t gradient_at(int64_t sample, int64_t tap, int64_t token) const {
    return sample * sample_stride + tap * tap_stride + token * token_stride;
  }
};

// Attention's scores q . F to weights alpha (ReLU(score) / nrm + rho I + base).
template <class S>
struct WeighArgs {
  int64_t samples, taps, rows, keys;
  Product<S>* scores;                             // in; weights out
  int64_t sample_stride, tap_stride, row_stride;  // of scores; keys lie side by side
  int64_t first_row;                              // place of row 0 among the keys
  bool causal;
  const Wide<S>* keep;   // [samples, keys] 1 for keys that may be attended to, else 0; or null
  const Wide<S>* alpha;  // [taps] a sample, or null for 1
  int64_t alpha_stride;
  const Wide<S>* score_bias;  // [taps] or null
  Wide<S> rho;
  const int64_t* base_index;  // [samples] or null
  const Wide<S>* base_scale;  // [taps] or null for 1
  Wide<S> eps;
  bool clamp;       // nrm(R) is max(R, eps) instead of R + eps
  Wide<S>* rowsum;  // [taps, rows] a sample: out; read by the backward
  int64_t sum_sample_stride, sum_tap_stride;

  PYEXT_HD int64_t at(int64_t sample, int64_t tap, int64_t row) const {
    return sample * sample_stride + tap * tap_stride + row * row_stride;
  }
  PYEXT_HD int64_t sum_at(int64_t sample, int64_t tap, int64_t row) const {
    return sample * sum_sample_stride + tap * sum_tap_stride + row;
  }
  // How many keys a row may look at.
  PYEXT_HD int64_t seen(int64_t row) const {
    return causal && first_row + row + 1 < keys ? first_row + row + 1 : keys;
  }
  PYEXT_HD Wide<S> norm(Wide<S> sum) const { return clamp ? (sum < eps ? eps : sum) : sum + eps; }
  // Whether the norm changes with the sum.
  PYEXT_HD bool moves(Wide<S> sum) const { return !clamp || sum > eps; }
  PYEXT_HD Wide<S> scale_of_base(int64_t tap) const {
    return base_scale ? base_scale[tap] : Wide<S>(1);
  }
};

constexpr int kTerms = 3;  // of the gradients to alpha, score_bias and base_scale, a row

template <class S>
struct WeighBackwardArgs {
  WeighArgs<S> forward;  // scores in, their gradients out
  int64_t products;      // from the scores to as many g_z . F: in; weights out
  Wide<S>* terms;        // [taps, rows, kTerms] a sample, placed as rowsum; out or null
};

// Weights of taps from their means.
template <class S>
struct ConfidenceArgs {
  int64_t samples, taps, channels;
  const Wide<S>* pool_q;  // [B, d]
  const Wide<S>* pool;    // [B, K, d]
  const Wide<S>*a, *c;    // [K, d] or null
  const Wide<S>* w;       // [d]
  const Wide<S>* b;       // [1]
  Wide<S>* alpha;         // [B, K] out; read by the backward
};

template <class S>
struct ConfidenceBackwardArgs {
  ConfidenceArgs<S> forward;
  const Wide<S>* g_alpha;  // [B, K]
  Wide<S>* g_pool_q;       // [B, d] out
  Wide<S>* g_pool;         // [B, K, d] out
  Wide<S>*g_a, *g_c;       // [K, d] out or null
  Wide<S>* g_w;            // [d] out
};

// Taps merged inside each token.
template <class S>
struct AntiredArgs {
  int64_t samples, taps, tokens, channels;
  const S* g;                                       // [B, N, d]
  const S* h;                                       // [B, K, N, d]
  int64_t sample_stride, tap_stride, token_stride;  // of h; channels lie side by side
  const Wide<S>*a, *c;                              // [K, d] or null
  const Wide<S>*w, *b;                              // [d], [1]
  Wide<S> eps_l1, eps_l2;
  bool add_guide;
  S* z;           // [B, N, d] out
  Wide<S>* beta;  // [B, N, K] out
};

template <class S>
struct AntiredBackwardArgs {
  AntiredArgs<S> forward;                           // its outputs are not read
  const S* g_z;                                     // [B, N, d]
  S* g_g;                                           // [B, N, d] out
  S* g_h;                                           // [B, K, N, d] out
  int64_t sample_stride, tap_stride, token_stride;  // of g_h
  Wide<S>*g_a, *g_c;                                // [K, d] out or null
  Wide<S>* g_w;                                     // [d] out
  Wide<S>* g_b;                                     // [1] out
};

#define PYEXT_SIDE_MIXING_KERNELS(X)             \
  X(features, FeaturesArgs)                      \
  X(features_backward, FeaturesBackwardArgs)     \
  X(weigh, WeighArgs)                            \
  X(weigh_backward, WeighBackwardArgs)           \
  X(confidence, ConfidenceArgs)                  \
  X(confidence_backward, ConfidenceBackwardArgs) \
  X(antired, AntiredArgs)                        \
  X(antired_backward, AntiredBackwardArgs)

}  // namespace pyext::side
