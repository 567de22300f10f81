// Kernels with the mistakes that the emulator must find; the argument picks one.
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "core/cuda/launch.h"

namespace {

__global__ void returns_before_the_barrier(float*) {
  if (threadIdx.x != 5) __syncthreads();
}

__global__ void waits_elsewhere(float*) {
  if (threadIdx.x == 5)
    __syncwarp();
  else
    __syncthreads();
}

__global__ void writes_beyond(float* values) { values[threadIdx.x] = 0.0f; }

}  // namespace

int main(int, char** arguments) {
  float* values = static_cast<float*>(std::malloc(4 * sizeof(float)));
  try {
    switch (std::atoi(arguments[1])) {
      case 0:
        PYEXT_LAUNCH(returns_before_the_barrier, 1, 64, nullptr, values);
        break;
      case 1:
        PYEXT_LAUNCH(waits_elsewhere, 1, 64, nullptr, values);
        break;
      case 2:
        PYEXT_LAUNCH(writes_beyond, 1, 64, nullptr, values);
        break;
    }
  } catch (const std::runtime_error& error) {
    std::puts(error.what());
  }
  std::free(values);
  return 0;
}
