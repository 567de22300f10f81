// Sums of rows: over spans, and of spans; one thread a channel.
#pragma once

#include "core/cuda/launch.h"
#include "side/kernels.h"

namespace pyext::side::cuda {

constexpr int kSpanThreads = 128;

template <class S>
__global__ void __launch_bounds__(kSpanThreads) span_sums_kernel(SpanSumsArgs<S> args) {
  const int64_t d = args.channels, chunks = (d + kSpanThreads - 1) / kSpanThreads;
  const int64_t span = blockIdx.x / chunks;
  const int64_t c = blockIdx.x % chunks * kSpanThreads + threadIdx.x;
  if (c >= d) return;
  float sum = 0.0f, product = 0.0f;
  for (int64_t row = args.ends[span]; row < args.ends[span + 1]; ++row) {
    if (args.mask && !args.mask[row]) continue;
    const float x = widen(args.rows[args.at(row) + c]);
    sum += x;
    if (args.products) product += x * float(widen(args.others[args.at(row) + c]));
  }
  args.sums[span * d + c] = sum;
  if (args.products) args.products[span * d + c] = product;
}

template <class S>
void span_sums(const SpanSumsArgs<S>& args, const Context& context) {
  const unsigned blocks = unsigned(args.spans) * blocks_for(args.channels, kSpanThreads);
  PYEXT_LAUNCH(span_sums_kernel<S>, blocks, kSpanThreads, cudaStream_t(context.stream), args);
}

template <class S>
__global__ void __launch_bounds__(kSpanThreads) join_spans_kernel(JoinSpansArgs<S> args) {
  const int64_t i = int64_t(blockIdx.x) * kSpanThreads + threadIdx.x;
  if (i >= args.groups * args.channels) return;
  const int64_t group = i / args.channels, c = i % args.channels;
  float sum = 0.0f;
  for (int64_t span = args.ends[group]; span < args.ends[group + 1]; ++span)
    sum += args.sums[span * args.channels + c];
  args.out[group * args.out_stride + c] = args.scale ? sum * args.scale[group] : sum;
}

template <class S>
void join_spans(const JoinSpansArgs<S>& args, const Context& context) {
  PYEXT_LAUNCH(join_spans_kernel<S>, blocks_for(args.groups * args.channels, kSpanThreads),
               kSpanThreads, cudaStream_t(context.stream), args);
}

}  // namespace pyext::side::cuda
