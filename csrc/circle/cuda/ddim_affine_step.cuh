// A DDIM step with guidance, one thread for neighbouring elements of a sample.
#pragma once

#include "circle/cuda/interp.cuh"

namespace pyext::circle::cuda {

template <class T>
__device__ inline T step_element(const double* coef, T clip, T x, T e) {
  if (!(clip > T(0))) return fma(T(coef[1]), e, T(coef[0]) * x);
  const T clean = fma(T(coef[1]), e, T(coef[0]) * x);
  const T clipped = clean > clip ? clip : (clean < -clip ? -clip : clean);
  return fma(T(coef[2]), clipped, fma(T(coef[4]), e, T(coef[3]) * x));
}

template <class S, int N>
__global__ void __launch_bounds__(kThreads) ddim_affine_step_kernel(DdimAffineStepArgs<S> args) {
  using T = Wide<S>;
  const int64_t at = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * N;
  const int64_t values = args.samples * args.width;
  if (at >= values) return;
  const double* coef = args.coef + at / args.width * args.coef_stride;
  const auto e = *reinterpret_cast<const Pack<S, N>*>(args.eps + at);
  const auto x = *reinterpret_cast<const Pack<S, N>*>(args.x + at);
  Pack<S, N> u = {}, y;
  if (args.unconditional) u = *reinterpret_cast<const Pack<S, N>*>(args.unconditional + at);
  for (int j = 0; j < N; ++j) {
    T eps = widen(e.v[j]);
    if (args.unconditional) {
      const T from = widen(u.v[j]);
      eps = fma(T(args.guidance), eps - from, from);
    }
    y.v[j] = narrow<S>(step_element(coef, T(args.clip), T(widen(x.v[j])), eps));
  }
  for (int64_t c = 0; c < args.copies; ++c)
    *reinterpret_cast<Pack<S, N>*>(args.y + c * values + at) = y;
}

template <class S>
void ddim_affine_step(const DdimAffineStepArgs<S>& args, const Context& context) {
  const auto stream = cudaStream_t(context.stream);
  const int64_t values = args.samples * args.width;
  if (in_packs<S>(args.width, args.eps, args.unconditional, args.x, args.y)) {
    constexpr auto kernel = ddim_affine_step_kernel<S, kPackValues<S>>;
    PYEXT_LAUNCH(kernel, blocks_for(values, kThreads * kPackValues<S>), kThreads, stream, args);
  } else {
    constexpr auto kernel = ddim_affine_step_kernel<S, 1>;
    PYEXT_LAUNCH(kernel, blocks_for(values, kThreads), kThreads, stream, args);
  }
}

}  // namespace pyext::circle::cuda
