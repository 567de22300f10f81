// What attention with ReLU scores does between its matrix products. Called for a part of the
// samples, rows and taps, from several threads at once.
#pragma once

#include "core/simd_half.h"
#include "side/kernels.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::side;

// F = a o h + c.
template <class S>
void features(const FeaturesArgs<S>& args, const Context&) {
  using V = WideLanes<S>;
  const int64_t d = args.channels;
  auto* out = args.features;
  for (int64_t sample = 0; sample < args.samples; ++sample)
    for (int64_t tap = 0; tap < args.taps; ++tap)
      for (int64_t token = 0; token < args.tokens; ++token, out += d) {
        const S* h = args.h + args.at(sample, tap, token);
        for_each_lanes(d, [&](int64_t i, auto lanes) {
          V f = load_wide(h + i, lanes);
          if (args.a) f = f * load_wide(args.a + tap * d + i, lanes);
          if (args.c) f = f + load_wide(args.c + tap * d + i, lanes);
          store_narrow(f, out + i, lanes);
        });
      }
}

// The sums over a sample's tokens are built up where they end.
template <class S>
void features_backward(const FeaturesBackwardArgs<S>& args, const Context&) {
  using V = WideLanes<S>;
  using W = Wide<S>;
  const FeaturesArgs<S>& f = args.forward;
  const int64_t d = f.channels;
  for (int64_t sample = 0; sample < f.samples; ++sample)
    for (int64_t tap = 0; tap < f.taps; ++tap) {
      W* g_a = args.g_a ? args.g_a + sample * args.sum_stride + tap * d : nullptr;
      W* g_c = args.g_c ? args.g_c + sample * args.sum_stride + tap * d : nullptr;
      for (int64_t token = 0; token < f.tokens; ++token) {
        const int64_t row = (sample * f.taps + tap) * f.tokens + token;
        const S* h = f.h + f.at(sample, tap, token);
        S* g_h = args.g_h + args.gradient_at(sample, tap, token);
        for_each_lanes(d, [&](int64_t i, auto lanes) {
          const V g = load_wide(args.g_features + row * d + i, lanes), zero(W(0));
          if (g_a) {
            const V sum = token ? load_wide(g_a + i, lanes) : zero;
            store_narrow(fma(g, load_wide(h + i, lanes), sum), g_a + i, lanes);
          }
          if (g_c) store_narrow(token ? load_wide(g_c + i, lanes) + g : g, g_c + i, lanes);
          store_narrow(f.a ? g * load_wide(f.a + tap * d + i, lanes) : g, g_h + i, lanes);
        });
      }
    }
}

// Zero if not positive; what is not a number stays so.
template <class T>
PYEXT_INLINE Lanes<T> relu(Lanes<T> x) {
  return select(x <= Lanes<T>(T(0)), Lanes<T>(T(0)), x);
}

// The scores of one row with one tap's keys, before they become weights.
template <class S>
struct ScoreRow {
  using W = Wide<S>;
  int64_t at;      // of its first score
  int64_t sum_at;  // of its sum
  int64_t seen;    // keys that are not later ones
  W alpha, bias;
  const W* keep;

  ScoreRow(const WeighArgs<S>& args, int64_t sample, int64_t tap, int64_t row)
      : at(args.at(sample, tap, row)),
        sum_at(args.sum_at(sample, tap, row)),
        seen(args.seen(row)),
        alpha(args.alpha ? args.alpha[sample * args.alpha_stride + tap] : W(1)),
        bias(args.score_bias ? args.score_bias[tap] : W(0)),
        keep(args.keep ? args.keep + sample * args.keys : nullptr) {}

  // ReLU of the scores of as many keys from j on.
  template <class Count>
  PYEXT_INLINE WideLanes<S> weight(const Product<S>* scores, int64_t j, Count lanes) const {
    using V = WideLanes<S>;
    V s = load_wide(scores + j, lanes) + V(bias);
    if (keep) s = s * load_wide(keep + j, lanes);
    if (lanes < kLanes) s = select(Mask<W>::first(lanes), s, V(W(0)));
    return relu(s);
  }
};

// Calls body(row) for every row and tap.
template <class S, class Body>
void for_each_score_row(const WeighArgs<S>& args, Body body) {
  for (int64_t sample = 0; sample < args.samples; ++sample)
    for (int64_t row = 0; row < args.rows; ++row)
      for (int64_t tap = 0; tap < args.taps; ++tap)
        body(ScoreRow<S>(args, sample, tap, row), sample, tap, row);
}

// Adds what the identity and the base give to the weights of a row.
template <class S>
void add_own(const WeighArgs<S>& args, const ScoreRow<S>& r, int64_t sample, int64_t tap,
             int64_t row, Product<S>* weights) {
  const auto add = [&](int64_t key, Wide<S> weight) {
    weights[key] = narrow<Product<S>>(widen(weights[key]) + r.alpha * weight);
  };
  if (args.rho != 0) add(args.first_row + row, args.rho);
  if (args.base_index) add(args.base_index[sample], args.scale_of_base(tap));
}

template <class S>
void weigh(const WeighArgs<S>& args, const Context&) {
  using V = WideLanes<S>;
  using W = Wide<S>;
  for_each_score_row(args, [&](const ScoreRow<S>& r, int64_t sample, int64_t tap, int64_t row) {
    Product<S>* scores = args.scores + r.at;
    V sum(W(0));
    for_each_lanes(r.seen, [&](int64_t j, auto lanes) { sum = sum + r.weight(scores, j, lanes); });
    const W total = args.rowsum[r.sum_at] = sum.sum();
    const V scale(r.alpha / args.norm(total));
    for_each_lanes(r.seen, [&](int64_t j, auto lanes) {
      store_narrow(scale * r.weight(scores, j, lanes), scores + j, lanes);
    });
    memset(scores + r.seen, 0, size_t(args.keys - r.seen) * sizeof *scores);
    add_own(args, r, sample, tap, row, scores);
  });
}

template <class S>
void weigh_backward(const WeighBackwardArgs<S>& args, const Context&) {
  using V = WideLanes<S>;
  using W = Wide<S>;
  const WeighArgs<S>& f = args.forward;
  const V zero(W(0));
  for_each_score_row(f, [&](const ScoreRow<S>& r, int64_t sample, int64_t tap, int64_t row) {
    Product<S>*scores = f.scores + r.at, *products = scores + args.products;
    const W total = f.rowsum[r.sum_at], inverse = W(1) / f.norm(total);
    V sum = zero, sum_scores = zero;
    for_each_lanes(r.seen, [&](int64_t j, auto lanes) {
      sum = fma(r.weight(scores, j, lanes), load_wide(products + j, lanes), sum);
    });
    const W mixed = sum.sum() * inverse;
    const W own = f.rho != 0 ? widen(products[f.first_row + row]) : W(0);
    const W base = f.base_index ? widen(products[f.base_index[sample]]) : W(0);
    const V shift(f.moves(total) ? mixed : W(0)), scale(r.alpha * inverse);
    for_each_lanes(r.seen, [&](int64_t j, auto lanes) {
      const V weight = r.weight(scores, j, lanes);
      const V g = scale * (load_wide(products + j, lanes) - shift);
      const V g_score = select(weight > zero, g, zero);
      sum_scores = sum_scores + g_score;
      store_narrow(g_score, scores + j, lanes);
      store_narrow(scale * weight, products + j, lanes);
    });
    memset(scores + r.seen, 0, size_t(f.keys - r.seen) * sizeof *scores);
    memset(products + r.seen, 0, size_t(f.keys - r.seen) * sizeof *scores);
    add_own(f, r, sample, tap, row, products);
    if (!args.terms) return;
    W* terms = args.terms + kTerms * r.sum_at;
    terms[0] = mixed + f.rho * own + f.scale_of_base(tap) * base;
    terms[1] = sum_scores.sum();
    terms[2] = r.alpha * base;
  });
}

}  // namespace pyext::PYEXT_ISA
