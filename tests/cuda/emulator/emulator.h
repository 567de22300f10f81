// Runs CUDA kernels on the CPU: blocks one after another, the threads of a block as fibers.
//
// A fiber runs until it meets a barrier or a warp operation, and goes on when all threads that must
// take part have arrived. A thread that never arrives, or arrives at another operation, is an error
// with the names of both: on a GPU it would hang or give garbage. The environment variable
// PYEXT_EMULATOR_ORDER=reverse runs the threads from the last to the first; a kernel that lacks a
// barrier gives another answer then.
#pragma once

#include <cstdint>
#include <functional>

struct uint3 {
  unsigned x, y, z;
};
extern uint3 threadIdx, blockIdx;

namespace pyext::emulator {

// What threads wait for together.
enum class Meeting { none, block, block_and, warp, shuffle_xor, ballot, any, all, max };

// Runs `kernel` for every thread of a grid.
void launch(unsigned blocks, unsigned threads, const std::function<void()>& kernel);

// Suspends the calling thread until all of `mask` (of its warp; ignored for a block) are here, and
// returns what the operation gives this thread.
uint64_t meet(Meeting meeting, unsigned mask, uint64_t value, int argument = 0);

}  // namespace pyext::emulator
