// Blocks and their warps, as the kernels of the family have them.
#pragma once

#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"

namespace pyext::lowrank::cuda {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kTogether = 4;  // sums that a thread has in registers

}  // namespace pyext::lowrank::cuda
