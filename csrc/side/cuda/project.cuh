// Rows of one tap: from its product with the matrix to h, and back; one warp a row.
#pragma once

#include "side/cuda/rows.cuh"

namespace pyext::side::cuda {

template <Activation A, class S>
__global__ void __launch_bounds__(kRowThreads) project_kernel(ProjectArgs<S> args) {
  const int64_t i = own_row(), d = args.channels;
  if (i >= args.count) return;
  const BiasedRow<S> u{args.product + i * d, args.bias};
  S* h = args.h + args.at(args.first + i);
  if (!args.norm) {
    for_each_channel(d, [&](int64_t c) { h[c] = narrow<S>(side::activate<A>(u(c))); });
    return;
  }
  const Moments moments = moments_of(d, args.eps, u);
  if ((threadIdx.x & 31) == 0) args.rstd[args.stat_at(args.first + i)] = moments.rstd;
  for_each_channel(d, [&](int64_t c) { h[c] = narrow<S>((u(c) - moments.mean) * moments.rstd); });
}

template <class S>
void project(const ProjectArgs<S>& args, const Context& context) {
  with_activation(args.post_act, [&](auto act) {
    constexpr auto kernel = project_kernel<decltype(act)::value, S>;
    PYEXT_LAUNCH(kernel, row_blocks(args.count), kRowThreads, cudaStream_t(context.stream), args);
  });
}

// The gradient to h of one row, from all that was made of it.
template <class S>
struct RowGradient {
  const S *g_h, *h;
  const float *g_pool, *g_sums, *g_squares;  // null where the row has none
  float share;

  __device__ RowGradient(const ProjectBackwardArgs<S>& args, int64_t row)
      : g_h(args.g_h + args.g_at(row)),
        h(args.forward.h + args.forward.at(row)),
        g_pool(nullptr),
        g_sums(nullptr),
        g_squares(nullptr),
        share(0.0f) {
    if (args.mask && !args.mask[row]) return;
    g_sums = args.g_sums;
    g_squares = args.g_squares;
    if (!args.g_pool) return;
    const int64_t sample = args.samples ? args.samples[row] : row / args.forward.at.tokens;
    g_pool = args.g_pool + sample * args.g_pool_stride;
    share = args.share[sample];
  }
  __device__ float operator()(int64_t c) const {
    float g = widen(g_h[c]);
    if (g_pool) g += share * g_pool[c];
    if (g_sums) g += g_sums[c];
    if (g_squares) g += 2.0f * widen(h[c]) * g_squares[c];
    return g;
  }
};

template <Activation A, class S>
__global__ void __launch_bounds__(kRowThreads)
    project_backward_kernel(ProjectBackwardArgs<S> args) {
  const ProjectArgs<S>& f = args.forward;
  const int64_t i = own_row(), d = f.channels;
  if (i >= f.count) return;
  const RowGradient<S> g(args, f.first + i);
  Product<S>* out = args.g_product + i * d;
  if (f.norm) {
    norm_backward(
        d, f.rstd[f.stat_at(f.first + i)], g, [&](int64_t c) { return widen(g.h[c]); },
        [&](int64_t c, float value) { out[c] = narrow<Product<S>>(value); });
    return;
  }
  const BiasedRow<S> u{f.product + i * d, f.bias};
  for_each_channel(d, [&](int64_t c) {
    const float before = derivative_from_result(A) ? float(widen(g.h[c])) : u(c);
    out[c] = narrow<Product<S>>(side::activate_backward<A>(before, g(c)));
  });
}

template <class S>
void project_backward(const ProjectBackwardArgs<S>& args, const Context& context) {
  with_activation(args.forward.post_act, [&](auto act) {
    constexpr auto kernel = project_backward_kernel<decltype(act)::value, S>;
    PYEXT_LAUNCH(kernel, row_blocks(args.forward.count), kRowThreads, cudaStream_t(context.stream),
                 args);
  });
}

}  // namespace pyext::side::cuda
