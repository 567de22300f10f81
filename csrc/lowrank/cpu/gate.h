// The noisy top-k gate: products of a few rows with all columns at once, so that x is read once;
// then a softmax a row. Gradients to the columns are sums over spans of rows, joined in order.
#pragma once

#include "core/parallel.h"
#include "lowrank/cpu/dots.h"
#include "lowrank/gating.h"
#include "lowrank/kernels.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::lowrank;

constexpr int kGateRows = 16;          // that a task takes at once
constexpr int64_t kSpans = 32;         // of rows, at most
constexpr int64_t kLeastSpan = 64;     // rows
constexpr int64_t kJoinValues = 4096;  // of gradients that one task joins

// The logits and the gate of row n, of its products with the columns.
template <class S>
void gate_row(const NoisyGateArgs<S>& args, int64_t n, const Wide<S>* products) {
  using T = Wide<S>;
  const int64_t E = args.experts;
  T *logits = args.logits + n * E, *gate = args.gate + n * E;
  for (int64_t e = 0; e < E; ++e) {
    logits[e] = products[e];
    if (!args.eps) continue;
    const T deviation = products[E + e];
    args.deviations[n * E + e] = deviation;
    logits[e] += args.eps[n * E + e] * (softplus(deviation) + T(args.floor));
  }
  bool kept[kMaxRank];
  bool first = true;
  T most = T(0), sum = T(0);
  for (int64_t e = 0; e < E; ++e) {
    kept[e] = is_kept(logits, E, args.topk, e);
    if (kept[e]) most = first || logits[e] > most ? logits[e] : most, first = false;
  }
  for (int64_t e = 0; e < E; ++e) {
    gate[e] = kept[e] ? vexp(logits[e] - most) : T(0);
    sum += gate[e];
  }
  for (int64_t e = 0; e < E; ++e) gate[e] /= sum;
}

template <class S>
void noisy_gate(const NoisyGateArgs<S>& args, const Context&) {
  const int64_t columns = args.eps ? 2 * args.experts : args.experts;
  auto task = [&](int64_t index, int) {
    const int64_t first = index * kGateRows, left = args.rows - first;
    const int count = left < kGateRows ? int(left) : kGateRows;
    const S* x[kGateRows];
    Wide<S> products[kGateRows][2 * kMaxRank];
    list_rows(args.x + first * args.width, count, args.width, x);
    dots(count, x, args.w, columns, args.width, products[0], 2 * kMaxRank);
    for (int i = 0; i < count; ++i) gate_row(args, first + i, products[i]);
  };
  parallel_tasks((args.rows + kGateRows - 1) / kGateRows, task);
}

// The gradients to a row's products with the columns.
template <class S>
void gate_row_backward(const NoisyGateBackwardArgs<S>& args, int64_t n, Wide<S>* out) {
  using T = Wide<S>;
  const NoisyGateArgs<S>& f = args.forward;
  const int64_t E = f.experts;
  const T *gate = f.gate + n * E, *g = args.g_gate + n * E;
  T mean = T(0);
  for (int64_t e = 0; e < E; ++e) mean += gate[e] * g[e];
  for (int64_t e = 0; e < E; ++e) {
    out[e] = gate[e] * (g[e] - mean) + args.g_logits[n * E + e];
    if (f.eps) out[E + e] = out[e] * f.eps[n * E + e] * softplus_slope(f.deviations[n * E + e]);
  }
}

// Rows [first, end): their gradients, and the sums [columns, D] of the products of x with those to
// the columns.
template <class S>
void gate_span_backward(const NoisyGateBackwardArgs<S>& args, int64_t first, int64_t end,
                        int64_t columns, Wide<S>* sums) {
  using T = Wide<S>;
  const NoisyGateArgs<S>& f = args.forward;
  const T* w[2 * kMaxRank];
  T* out[2 * kMaxRank];
  list_rows(f.w, columns, f.width, w);
  if (sums) list_rows(sums, columns, f.width, out);
  for (int64_t n = first; n < end; n += kGateRows) {
    const int count = end - n < kGateRows ? int(end - n) : kGateRows;
    T g[kGateRows][2 * kMaxRank];
    for (int i = 0; i < count; ++i) gate_row_backward(args, n + i, g[i]);
    if (args.g_x) {
      S* g_x[kGateRows];
      list_rows(args.g_x + n * f.width, count, f.width, g_x);
      add_products<S>(count, f.width, g_x, nullptr, Coefficients<T>{g[0], 2 * kMaxRank, 1}, columns,
                      w);
    }
    if (sums) {
      const S* x[kGateRows];
      list_rows(f.x + n * f.width, count, f.width, x);
      add_products<T>(int(columns), f.width, out, n == first ? nullptr : out,
                      Coefficients<T>{g[0], 1, 2 * kMaxRank}, count, x);
    }
  }
}

template <class S>
void noisy_gate_backward(const NoisyGateBackwardArgs<S>& args, const Context& context) {
  using T = Wide<S>;
  const NoisyGateArgs<S>& f = args.forward;
  const int64_t columns = f.eps ? 2 * f.experts : f.experts, values = columns * f.width;
  const int64_t fair = (f.rows + kSpans - 1) / kSpans;
  const int64_t span = fair < kLeastSpan ? kLeastSpan : fair;
  const int64_t spans = (f.rows + span - 1) / span;
  T* sums = nullptr;
  if (args.g_w)
    sums = static_cast<T*>(context.scratch(context.owner, spans * values * int64_t(sizeof(T))));
  auto task = [&](int64_t s, int) {
    const int64_t end = (s + 1) * span < f.rows ? (s + 1) * span : f.rows;
    gate_span_backward(args, s * span, end, columns, sums ? sums + s * values : nullptr);
  };
  parallel_tasks(spans, task);
  if (!sums) return;
  auto join = [&](int64_t index, int) {
    const int64_t begin = index * kJoinValues;
    const int64_t n = values - begin < kJoinValues ? values - begin : kJoinValues;
    for_each_lanes(n, [&](int64_t i, auto lanes) {
      Lanes<T> total(T(0));
      for (int64_t s = 0; s < spans; ++s)
        total = total + load_wide(sums + s * values + begin + i, lanes);
      store_narrow<T>(total, args.g_w + begin + i, lanes);
    });
  };
  parallel_tasks((values + kJoinValues - 1) / kJoinValues, join);
}

}  // namespace pyext::PYEXT_ISA
