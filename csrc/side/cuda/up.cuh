// Rows of the map up: from their product with the matrix to the result, and back; one warp a row.
#pragma once

#include "side/cuda/rows.cuh"
#include "side/dropout.h"

namespace pyext::side::cuda {

// What a dropout multiplies an element by.
__device__ inline float kept_scale(const Dropout& dropout, int64_t index) {
  if (dropout.scale == 0) return 1.0f;
  const uint32_t stream = dropout_stream(dropout, uint32_t(uint64_t(index) >> 32));
  return kept(dropout, stream, uint32_t(index)) ? float(dropout.scale) : 0.0f;
}

__device__ inline float scale_of(const float* scale) { return scale ? *scale : 1.0f; }

template <Activation A, class S>
__global__ void __launch_bounds__(kRowThreads) up_kernel(UpArgs<S> args) {
  const int64_t i = own_row(), E = args.channels;
  if (i >= args.count) return;
  const int64_t row = args.first + i, at = row * E;
  const BiasedRow<S> u{args.product + i * E, args.bias};
  const float out_scale = scale_of(args.out_scale), res_scale = scale_of(args.res_scale);
  Moments moments{0.0f, 1.0f};
  if (args.gamma) {
    moments = moments_of(E, args.eps, u);
    if ((threadIdx.x & 31) == 0) args.rstd[row] = moments.rstd;
  }
  for_each_channel(E, [&](int64_t c) {
    float v = u(c);
    if (args.gamma) {
      v = (v - moments.mean) * moments.rstd;
      args.xhat[at + c] = narrow<S>(v);
      v = v * args.gamma[c] + args.beta[c];
    }
    v = side::activate<A>(v) * kept_scale(args.dropout, at + c) * out_scale;
    if (args.residual) v += res_scale * widen(args.residual[at + c]);
    args.y[at + c] = narrow<S>(v);
  });
}

template <class S>
void up(const UpArgs<S>& args, const Context& context) {
  with_activation(args.post_act, [&](auto act) {
    constexpr auto kernel = up_kernel<decltype(act)::value, S>;
    PYEXT_LAUNCH(kernel, row_blocks(args.count), kRowThreads, cudaStream_t(context.stream), args);
  });
}

template <Activation A, class S>
__global__ void __launch_bounds__(kRowThreads) up_backward_kernel(UpBackwardArgs<S> args) {
  const UpArgs<S>& f = args.forward;
  const int64_t i = own_row(), E = f.channels;
  if (i >= f.count) return;
  const int64_t at = (f.first + i) * E;
  const BiasedRow<S> u{f.product + i * E, f.bias};
  const float out_scale = scale_of(f.out_scale);
  // What the activation is applied to, and the gradient to it.
  const auto before = [&](int64_t c) {
    if (f.gamma) return float(widen(f.xhat[at + c])) * f.gamma[c] + f.beta[c];
    return f.product ? u(c) : 0.0f;
  };
  const auto g_before = [&](int64_t c) {
    const float g = widen(args.g_y[at + c]) * kept_scale(f.dropout, at + c) * out_scale;
    return side::activate_backward<A>(before(c), g);
  };
  Product<S>* g_product = args.g_product + i * E;
  if (f.gamma) {
    S* g_normed = args.g_normed + i * E;
    for_each_channel(E, [&](int64_t c) { g_normed[c] = narrow<S>(g_before(c)); });
    norm_backward(
        E, f.rstd[f.first + i], [&](int64_t c) { return widen(g_normed[c]) * f.gamma[c]; },
        [&](int64_t c) { return widen(f.xhat[at + c]); },
        [&](int64_t c, float g) { g_product[c] = narrow<Product<S>>(g); });
  } else {
    for_each_channel(E, [&](int64_t c) { g_product[c] = narrow<Product<S>>(g_before(c)); });
  }
  if (!args.g_scales) return;
  float of_residual = 0.0f, of_result = 0.0f;
  if (f.res_scale)
    of_residual =
        row_sum(E, [&](int64_t c) { return widen(args.g_y[at + c]) * widen(f.residual[at + c]); });
  if (f.out_scale)
    of_result = row_sum(E, [&](int64_t c) {
      return widen(args.g_y[at + c]) * side::activate<A>(before(c)) * kept_scale(f.dropout, at + c);
    });
  if ((threadIdx.x & 31) != 0) return;
  args.g_scales[(f.first + i) * 2] = of_residual;
  args.g_scales[(f.first + i) * 2 + 1] = of_result;
}

template <class S>
void up_backward(const UpBackwardArgs<S>& args, const Context& context) {
  with_activation(args.forward.post_act, [&](auto act) {
    constexpr auto kernel = up_backward_kernel<decltype(act)::value, S>;
    PYEXT_LAUNCH(kernel, row_blocks(args.forward.count), kRowThreads, cudaStream_t(context.stream),
                 args);
  });
}

}  // namespace pyext::side::cuda
