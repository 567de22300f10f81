// The CUDA backend of `side`. No torch header: pointers, sizes and a stream come in.
#include "side/cuda/activate.cuh"
#include "side/cuda/antired.cuh"
#include "side/cuda/attend.cuh"
#include "side/cuda/confidence.cuh"
#include "side/cuda/gated.cuh"
#include "side/cuda/guided_pool.cuh"
#include "side/cuda/maxavg_pool.cuh"
#include "side/cuda/project.cuh"
#include "side/cuda/spans.cuh"
#include "side/cuda/up.cuh"

namespace pyext::side::cuda {

#define PYEXT_SIDE_ENTRY(name, Args) &name<S>,
template <class S>
constexpr Kernels<S> kKernels = {PYEXT_SIDE_KERNELS(PYEXT_SIDE_ENTRY)};
#undef PYEXT_SIDE_ENTRY
constexpr Backend kBackend = {&kKernels<float>, &kKernels<BFloat16>, &kKernels<Float16>, nullptr};

}  // namespace pyext::side::cuda

extern "C" __attribute__((visibility("default"))) const pyext::side::Backend* pyext_side_cuda() {
  return &pyext::side::cuda::kBackend;
}
