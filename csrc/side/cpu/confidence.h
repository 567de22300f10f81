// Weights of taps: a softmax of products of means, small beside everything else.
#pragma once

#include "core/parallel.h"
#include "core/simd_half.h"
#include "side/kernels.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::side;

// The features that tap `tap` of a sample has on average, as many channels from i on.
template <class S, class Count>
PYEXT_INLINE WideLanes<S> mean_features(const ConfidenceArgs<S>& args, int64_t sample, int64_t tap,
                                        int64_t i, Count lanes) {
  const int64_t d = args.channels;
  WideLanes<S> f = load_wide(args.pool + (sample * args.taps + tap) * d + i, lanes);
  if (args.a) f = f * load_wide(args.a + tap * d + i, lanes);
  return args.c ? f + load_wide(args.c + tap * d + i, lanes) : f;
}

template <class S>
void confidence(const ConfidenceArgs<S>& args, const Context&) {
  using V = WideLanes<S>;
  using W = Wide<S>;
  const int64_t d = args.channels, taps = args.taps;
  auto task = [&](int64_t sample, int) {
    W *alpha = args.alpha + sample * taps, most = 0, sum = 0;
    for (int64_t tap = 0; tap < taps; ++tap) {
      V product(W(0));
      for_each_lanes(d, [&](int64_t i, auto lanes) {
        const V w = load_wide(args.w + i, lanes) * load_wide(args.pool_q + sample * d + i, lanes);
        product = fma(w, mean_features(args, sample, tap, i, lanes), product);
      });
      alpha[tap] = product.sum() + *args.b;
      most = tap == 0 || alpha[tap] > most ? alpha[tap] : most;
    }
    for (int64_t tap = 0; tap < taps; ++tap) sum += alpha[tap] = pyext::vexp(alpha[tap] - most);
    for (int64_t tap = 0; tap < taps; ++tap) alpha[tap] /= sum;
  };
  parallel_tasks(args.samples, task);
}

// The gradient to a sample's products [K], of their softmax; and what flows on to its means.
template <class S>
void confidence_backward_sample(const ConfidenceBackwardArgs<S>& args, int64_t sample,
                                Wide<S>* g_product) {
  using V = WideLanes<S>;
  using W = Wide<S>;
  const ConfidenceArgs<S>& f = args.forward;
  const int64_t d = f.channels, taps = f.taps;
  const W *alpha = f.alpha + sample * taps, *g_alpha = args.g_alpha + sample * taps;
  W mean = 0;
  for (int64_t tap = 0; tap < taps; ++tap) mean += alpha[tap] * g_alpha[tap];
  for (int64_t tap = 0; tap < taps; ++tap) g_product[tap] = alpha[tap] * (g_alpha[tap] - mean);
  for_each_lanes(d, [&](int64_t i, auto lanes) {
    const V w = load_wide(f.w + i, lanes), w_q = w * load_wide(f.pool_q + sample * d + i, lanes);
    V sum(W(0));
    for (int64_t tap = 0; tap < taps; ++tap) {
      const V g(g_product[tap]);
      V g_pool = g * w_q;
      if (f.a) g_pool = g_pool * load_wide(f.a + tap * d + i, lanes);
      store_narrow(g_pool, args.g_pool + (sample * taps + tap) * d + i, lanes);
      sum = fma(g, mean_features(f, sample, tap, i, lanes), sum);
    }
    store_narrow(w * sum, args.g_pool_q + sample * d + i, lanes);
  });
}

// Sums over the samples, of sixteen channels of one tap; or of all taps, for w.
template <class S>
void confidence_backward_sums(const ConfidenceBackwardArgs<S>& args, const Wide<S>* g_product,
                              int64_t i, int lanes) {
  using V = WideLanes<S>;
  using W = Wide<S>;
  const ConfidenceArgs<S>& f = args.forward;
  const int64_t d = f.channels, taps = f.taps;
  const V w = load_wide(f.w + i, lanes);
  V g_w(W(0));
  for (int64_t tap = 0; tap < taps; ++tap) {
    V g_a(W(0)), g_c(W(0));
    for (int64_t sample = 0; sample < f.samples; ++sample) {
      const V g_q = V(g_product[sample * taps + tap]) * load_wide(f.pool_q + sample * d + i, lanes);
      g_a = fma(g_q, load_wide(f.pool + (sample * taps + tap) * d + i, lanes), g_a);
      g_c = g_c + g_q;
      g_w = fma(g_q, mean_features(f, sample, tap, i, lanes), g_w);
    }
    if (args.g_a) store_narrow(w * g_a, args.g_a + tap * d + i, lanes);
    if (args.g_c) store_narrow(w * g_c, args.g_c + tap * d + i, lanes);
  }
  store_narrow(g_w, args.g_w + i, lanes);
}

template <class S>
void confidence_backward(const ConfidenceBackwardArgs<S>& args, const Context& context) {
  using W = Wide<S>;
  const ConfidenceArgs<S>& f = args.forward;
  auto* g_product =
      static_cast<W*>(context.scratch(context.owner, f.samples * f.taps * int64_t(sizeof(W))));
  auto sample_task = [&](int64_t sample, int) {
    confidence_backward_sample(args, sample, g_product + sample * f.taps);
  };
  parallel_tasks(f.samples, sample_task);
  auto channel_task = [&](int64_t block, int) {
    const int64_t i = block * kLanes, left = f.channels - i;
    confidence_backward_sums(args, g_product, i, int(left < kLanes ? left : kLanes));
  };
  parallel_tasks((f.channels + kLanes - 1) / kLanes, channel_task);
}

}  // namespace pyext::PYEXT_ISA
