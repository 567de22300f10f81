// Stands in for CUB's header of the same name.
#pragma once

#include <cuda_runtime.h>

#include <numeric>

namespace cub {

struct DeviceScan {
  template <class T>
  static cudaError_t InclusiveSum(void* scratch, size_t& bytes, const T* in, T* out, int64_t count,
                                  cudaStream_t) {
    bytes = 1;
    if (scratch) std::partial_sum(in, in + count, out);
    return cudaSuccess;
  }
};

}  // namespace cub
