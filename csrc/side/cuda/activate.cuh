// Activations of whole arrays, one thread a value.
#pragma once

#include "core/cuda/launch.h"
#include "side/activation.h"
#include "side/kernels.h"

namespace pyext::side::cuda {

constexpr int kValueThreads = 256;

__device__ inline int64_t own_value() { return int64_t(blockIdx.x) * kValueThreads + threadIdx.x; }

template <Activation A, class S>
__global__ void __launch_bounds__(kValueThreads) activate_kernel(ActivateArgs<S> args) {
  const int64_t i = own_value();
  if (i < args.count) args.y[i] = narrow<Product<S>>(side::activate<A>(widen(args.x[i])));
}

template <class S>
void activate(const ActivateArgs<S>& args, const Context& context) {
  with_activation(args.act, [&](auto act) {
    constexpr auto kernel = activate_kernel<decltype(act)::value, S>;
    PYEXT_LAUNCH(kernel, blocks_for(args.count, kValueThreads), kValueThreads,
                 cudaStream_t(context.stream), args);
  });
}

template <Activation A, class S>
__global__ void __launch_bounds__(kValueThreads)
    activate_backward_kernel(ActivateBackwardArgs<S> args) {
  const int64_t i = own_value();
  if (i >= args.count) return;
  args.g_x[i] = narrow<S>(side::activate_backward<A>(widen(args.x[i]), float(widen(args.g_y[i]))));
}

template <class S>
void activate_backward(const ActivateBackwardArgs<S>& args, const Context& context) {
  with_activation(args.act, [&](auto act) {
    constexpr auto kernel = activate_backward_kernel<decltype(act)::value, S>;
    PYEXT_LAUNCH(kernel, blocks_for(args.count, kValueThreads), kValueThreads,
                 cudaStream_t(context.stream), args);
  });
}

}  // namespace pyext::side::cuda
