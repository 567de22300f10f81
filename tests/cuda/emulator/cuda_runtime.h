// Stands in for CUDA's header of the same name: what the kernels use of it, on the CPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after another

#define PYEXT_LAUNCH(kernel, blocks, threads, stream, ...) \
  ((void)(stream), pyext::emulator::launch((blocks), (threads), [=] { kernel(__VA_ARGS__); }))

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice, cudaMemcpyDeviceToHost };

inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t) {
  if (bytes) memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  if (bytes) memset(to, value, bytes);
  return cudaSuccess;
}

inline void __syncthreads() { pyext::emulator::meet(pyext::emulator::Meeting::block, ~0u, 0); }
inline int __syncthreads_and(int value) {
  return int(pyext::emulator::meet(pyext::emulator::Meeting::block_and, ~0u, value != 0));
}
inline void __syncwarp(unsigned mask = ~0u) {
  pyext::emulator::meet(pyext::emulator::Meeting::warp, mask, 0);
}
inline unsigned __ballot_sync(unsigned mask, int value) {
  return unsigned(pyext::emulator::meet(pyext::emulator::Meeting::ballot, mask, value != 0));
}
inline int __any_sync(unsigned mask, int value) {
  return int(pyext::emulator::meet(pyext::emulator::Meeting::any, mask, value != 0));
}
inline int __all_sync(unsigned mask, int value) {
  return int(pyext::emulator::meet(pyext::emulator::Meeting::all, mask, value != 0));
}
inline int __reduce_max_sync(unsigned mask, int value) {
  return int(pyext::emulator::meet(pyext::emulator::Meeting::max, mask, uint64_t(int64_t(value))));
}
inline float __shfl_xor_sync(unsigned mask, float value, int lanes) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  bits = uint32_t(pyext::emulator::meet(pyext::emulator::Meeting::shuffle_xor, mask, bits, lanes));
  memcpy(&value, &bits, sizeof bits);
  return value;
}

inline double __shfl_xor_sync(unsigned mask, double value, int lanes) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  bits = pyext::emulator::meet(pyext::emulator::Meeting::shuffle_xor, mask, bits, lanes);
  memcpy(&value, &bits, sizeof bits);
  return value;
}

inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __clz(int value) { return value ? __builtin_clz(unsigned(value)) : 32; }
inline unsigned __brev(unsigned value) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= (value >> bit & 1u) << (31 - bit);
  return reversed;
}
