// The one way to start a CUDA kernel: on the caller's stream, with its launch checked.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace pyext {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

inline unsigned blocks_for(int64_t items, int threads) {
  return unsigned((items + threads - 1) / threads);
}

}  // namespace pyext

// Other ways to run a kernel define the macro before they include this file.
#if !defined(PYEXT_LAUNCH)
#define PYEXT_LAUNCH(kernel, blocks, threads, stream, ...)         \
  do {                                                             \
    const unsigned launched = (blocks);                            \
    if (launched == 0) break; /* an empty grid is an error */      \
    kernel<<<launched, (threads), 0, (stream)>>>(__VA_ARGS__);     \
    pyext::check_cuda(cudaGetLastError(), "CUDA kernel " #kernel); \
  } while (false)
#endif
