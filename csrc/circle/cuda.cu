// The CUDA backend of `circle`. No torch header: pointers, sizes and a stream come in.
#include "circle/cuda/ddim_affine_step.cuh"
#include "circle/cuda/interp.cuh"
#include "circle/cuda/interp_backward.cuh"

namespace pyext::circle::cuda {

#define PYEXT_CIRCLE_ENTRY(name, Args) &name<S>,
template <class S>
constexpr Kernels<S> kKernels = {PYEXT_CIRCLE_KERNELS(PYEXT_CIRCLE_ENTRY)};
#undef PYEXT_CIRCLE_ENTRY
constexpr Backend kBackend = {&kKernels<float>, &kKernels<BFloat16>, &kKernels<Float16>,
                              &kKernels<double>};

}  // namespace pyext::circle::cuda

extern "C" __attribute__((visibility("default"))) const pyext::circle::Backend*
pyext_circle_cuda() {
  return &pyext::circle::cuda::kBackend;
}
