// Sums of rows: over spans, and of spans.
#pragma once

#include "core/simd_half.h"
#include "side/kernels.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::side;

template <class S>
void span_sums(const SpanSumsArgs<S>& args, const Context&) {
  using V = WideLanes<S>;
  const int64_t d = args.channels;
  for (int64_t span = 0; span < args.spans; ++span) {
    Wide<S>* sums = args.sums + span * d;
    Wide<S>* products = args.products ? args.products + span * d : nullptr;
    for (int64_t i = 0; i < d; ++i) sums[i] = Wide<S>(0);
    for (int64_t i = 0; products && i < d; ++i) products[i] = Wide<S>(0);
    for (int64_t row = args.ends[span]; row < args.ends[span + 1]; ++row) {
      if (args.mask && !args.mask[row]) continue;
      const S* values = args.rows + args.at(row);
      const S* others = products ? args.others + args.at(row) : nullptr;
      for_each_lanes(d, [&](int64_t i, auto lanes) {
        const V x = load_wide(values + i, lanes);
        store_narrow<Wide<S>>(load_wide(sums + i, lanes) + x, sums + i, lanes);
        if (products)
          store_narrow<Wide<S>>(
              fma(x, load_wide(others + i, lanes), load_wide(products + i, lanes)), products + i,
              lanes);
      });
    }
  }
}

template <class S>
void join_spans(const JoinSpansArgs<S>& args, const Context&) {
  using V = WideLanes<S>;
  for (int64_t group = 0; group < args.groups; ++group)
    for_each_lanes(args.channels, [&](int64_t i, auto lanes) {
      V sum(Wide<S>(0));
      for (int64_t span = args.ends[group]; span < args.ends[group + 1]; ++span)
        sum = sum + load_wide(args.sums + span * args.channels + i, lanes);
      if (args.scale) sum = sum * V(args.scale[group]);
      store_narrow<Wide<S>>(sum, args.out + group * args.out_stride + i, lanes);
    });
}

}  // namespace pyext::PYEXT_ISA
