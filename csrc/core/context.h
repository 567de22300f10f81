// What a backend may ask of its caller while it runs.
#pragma once

#include <cstdint>

namespace pyext {

struct Context {
  void* stream;  // cudaStream_t, null on the CPU
  void* owner;   // passed back to `scratch`
  // Device memory, released after the call. Any thread may ask for it.
  void* (*scratch)(void* owner, int64_t bytes);
};

}  // namespace pyext
