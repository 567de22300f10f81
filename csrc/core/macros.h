// Qualifiers that let one piece of arithmetic serve CPU vectors and CUDA threads.
#pragma once

#if defined(__CUDACC__) || defined(PYEXT_EMULATOR)
#define PYEXT_HD __host__ __device__ inline
#else
#define PYEXT_HD inline __attribute__((always_inline))
#endif
