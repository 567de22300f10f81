// The CUDA backend of `solve`. No torch header: pointers, sizes and a stream come in.
#include "solve/cuda/factor.cuh"
#include "solve/cuda/substitute.cuh"
#include "solve/cuda/sums.cuh"

namespace pyext::solve::cuda {

#define PYEXT_SOLVE_ENTRY(name, Args) &name,
constexpr Backend kBackend = {PYEXT_SOLVE_KERNELS(PYEXT_SOLVE_ENTRY)};
#undef PYEXT_SOLVE_ENTRY

}  // namespace pyext::solve::cuda

extern "C" __attribute__((visibility("default"))) const pyext::solve::Backend* pyext_solve_cuda() {
  return &pyext::solve::cuda::kBackend;
}
