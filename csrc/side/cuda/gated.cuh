// Rows of a gated projection, between and after their products; one thread a value.
#pragma once

#include "side/cuda/activate.cuh"

namespace pyext::side::cuda {

template <class S>
__global__ void __launch_bounds__(kValueThreads) gated_hidden_kernel(GatedHiddenArgs<S> args) {
  const int64_t i = own_value(), d = args.channels;
  if (i >= args.count * d) return;
  const int64_t row = i / d, c = i % d;
  const float u = widen(args.product[i]) + widen(args.bias[c]);
  const S hidden = narrow<S>(side::activate<Activation::relu>(u));
  args.hidden[args.at(args.first + row) + c] = hidden;
  args.copy[i] = narrow<Product<S>>(widen(hidden));
}

template <class S>
void gated_hidden(const GatedHiddenArgs<S>& args, const Context& context) {
  PYEXT_LAUNCH(gated_hidden_kernel<S>, blocks_for(args.count * args.channels, kValueThreads),
               kValueThreads, cudaStream_t(context.stream), args);
}

template <class S>
__global__ void __launch_bounds__(kValueThreads) copy_rows_kernel(CopyRowsArgs<S> args) {
  const int64_t i = own_value(), d = args.channels;
  if (i >= args.count * d) return;
  args.copy[i] = narrow<Product<S>>(widen(args.rows[args.at(args.first + i / d) + i % d]));
}

template <class S>
void copy_rows(const CopyRowsArgs<S>& args, const Context& context) {
  PYEXT_LAUNCH(copy_rows_kernel<S>, blocks_for(args.count * args.channels, kValueThreads),
               kValueThreads, cudaStream_t(context.stream), args);
}

// What the gate's two products give at value i, channel c.
template <class S>
struct GatedValue {
  float value, gate;
  __device__ GatedValue(const GatedArgs<S>& args, int64_t i, int64_t c)
      : value(widen(args.value[i]) + widen(args.bias2[c]) + widen(args.hidden[i])),
        gate(logistic(float(widen(args.gate[i]) + widen(args.bias3[c])))) {}
};

template <class S>
__global__ void __launch_bounds__(kValueThreads) gated_kernel(GatedArgs<S> args) {
  const int64_t i = own_value(), d = args.channels;
  if (i >= args.count * d) return;
  const GatedValue<S> at(args, i, i % d);
  args.f[args.at(args.first + i / d) + i % d] = narrow<S>(at.value * at.gate);
}

template <class S>
void gated(const GatedArgs<S>& args, const Context& context) {
  PYEXT_LAUNCH(gated_kernel<S>, blocks_for(args.count * args.channels, kValueThreads),
               kValueThreads, cudaStream_t(context.stream), args);
}

template <class S>
__global__ void __launch_bounds__(kValueThreads) gated_backward_kernel(GatedBackwardArgs<S> args) {
  const GatedArgs<S>& f = args.forward;
  const int64_t i = own_value(), d = f.channels;
  if (i >= f.count * d) return;
  const GatedValue<S> at(f, i, i % d);
  const float g = widen(args.g_f[args.g_at(f.first + i / d) + i % d]) * at.gate;
  args.g_value[i] = narrow<Product<S>>(g);
  args.g_gate[i] = narrow<Product<S>>(g * at.value * (1.0f - at.gate));
}

template <class S>
void gated_backward(const GatedBackwardArgs<S>& args, const Context& context) {
  const int64_t values = args.forward.count * args.forward.channels;
  PYEXT_LAUNCH(gated_backward_kernel<S>, blocks_for(values, kValueThreads), kValueThreads,
               cudaStream_t(context.stream), args);
}

template <class S>
__global__ void __launch_bounds__(kValueThreads) gated_join_kernel(GatedJoinArgs<S> args) {
  const int64_t i = own_value();
  if (i >= args.count) return;
  const float g = widen(args.skip[i]) + widen(args.through[i]);
  const float hidden = widen(args.hidden[i]);
  args.g[i] = narrow<Product<S>>(side::activate_backward<Activation::relu>(hidden, g));
}

template <class S>
void gated_join(const GatedJoinArgs<S>& args, const Context& context) {
  PYEXT_LAUNCH(gated_join_kernel<S>, blocks_for(args.count, kValueThreads), kValueThreads,
               cudaStream_t(context.stream), args);
}

}  // namespace pyext::side::cuda
