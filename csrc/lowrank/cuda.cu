// The CUDA backend of `lowrank`. No torch header: pointers, sizes and a stream come in.
#include "lowrank/cuda/gate.cuh"
#include "lowrank/cuda/lora.cuh"
#include "lowrank/cuda/mix.cuh"
#include "lowrank/cuda/orthonormalize.cuh"
#include "lowrank/cuda/rows.cuh"

namespace pyext::lowrank::cuda {

#define PYEXT_LOWRANK_ENTRY(name, Args) &name<S>,
template <class S>
constexpr Kernels<S> kKernels = {PYEXT_LOWRANK_KERNELS(PYEXT_LOWRANK_ENTRY)};
#undef PYEXT_LOWRANK_ENTRY
constexpr Backend kBackend = {&kKernels<float>, &kKernels<BFloat16>, &kKernels<Float16>, nullptr};

}  // namespace pyext::lowrank::cuda

extern "C" __attribute__((visibility("default"))) const pyext::lowrank::Backend*
pyext_lowrank_cuda() {
  return &pyext::lowrank::cuda::kBackend;
}
