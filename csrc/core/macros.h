// Qualifiers that let one piece of arithmetic serve CPU vectors and CUDA threads.
#pragma once

#if defined(PYEXT_EMULATOR)
#include <cuda_runtime.h>
#endif

#if defined(__CUDACC__) || defined(PYEXT_EMULATOR)
#define PYEXT_HD __host__ __device__ inline
#else
#define PYEXT_HD inline __attribute__((always_inline))
#endif

// Before a loop whose counts are known to the compiler, and whose indices then are, too. In nvcc's
// pass for the host it is nothing: no kernel runs there.
#if defined(__CUDA_ARCH__)
#define PYEXT_UNROLL _Pragma("unroll")
#elif defined(__CUDACC__)
#define PYEXT_UNROLL
#else
#define PYEXT_UNROLL _Pragma("GCC unroll 16")
#endif
