// The CUDA backend of `splat`. No torch header: pointers, sizes and a stream come in.
#include "splat/cuda/bin.cuh"
#include "splat/cuda/cells.cuh"
#include "splat/cuda/composite.cuh"
#include "splat/cuda/composite_backward.cuh"
#include "splat/cuda/contributors.cuh"
#include "splat/cuda/project.cuh"
#include "splat/cuda/sh.cuh"
#include "splat/cuda/unproject.cuh"

namespace pyext::splat::cuda {

constexpr Kernels<float> kKernels = {
    project,   project_backward,   sh,        sh_backward, bin,
    composite, composite_backward, unproject, cells,       contributors};
constexpr Backend kBackend = {&kKernels, nullptr};

}  // namespace pyext::splat::cuda

extern "C" __attribute__((visibility("default"))) const pyext::splat::Backend* pyext_splat_cuda() {
  return &pyext::splat::cuda::kBackend;
}
