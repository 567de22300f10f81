#include "emulator.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx;

namespace pyext::emulator {
namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr unsigned kWarp = 32;

struct Fiber {
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  ucontext_t start;
  jmp_buf where;
  bool started = false, finished = true;
  Meeting meeting = Meeting::none;
  unsigned mask = 0;
  uint64_t value = 0, result = 0;
  int argument = 0;
  void* sanitizer_stack = nullptr;
};

struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;
  const std::function<void()>* kernel = nullptr;
  Fiber* running = nullptr;
  jmp_buf scheduler;
  void* sanitizer_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
};
Machine machine;

// AddressSanitizer must know on which stack the program runs.
void leave_for([[maybe_unused]] void** save, [[maybe_unused]] const void* stack,
               [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(save, stack, bytes);
#endif
}
void arrive([[maybe_unused]] void* saved, [[maybe_unused]] bool from_scheduler) {
#if defined(__SANITIZE_ADDRESS__)
  const void* stack;
  size_t bytes;
  __sanitizer_finish_switch_fiber(saved, &stack, &bytes);
  if (from_scheduler) {
    machine.scheduler_stack = stack;
    machine.scheduler_stack_bytes = bytes;
  }
#endif
}

void suspend() {
  Fiber& fiber = *machine.running;
  leave_for(&fiber.sanitizer_stack, machine.scheduler_stack, machine.scheduler_stack_bytes);
  if (_setjmp(fiber.where) == 0) _longjmp(machine.scheduler, 1);
  arrive(fiber.sanitizer_stack, true);
}

// A fiber lives as long as the program and runs one thread after another.
void fiber_main() {
  arrive(nullptr, true);
  for (;;) {
    (*machine.kernel)();
    machine.running->finished = true;
    suspend();
  }
}

void resume(Fiber& fiber) {
  machine.running = &fiber;
  leave_for(&machine.sanitizer_stack, fiber.stack.get(), kStackBytes);
  if (_setjmp(machine.scheduler) == 0) {
    if (fiber.started) _longjmp(fiber.where, 1);
    fiber.started = true;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = kStackBytes;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, fiber_main, 0);
    setcontext(&fiber.start);
  }
  arrive(machine.sanitizer_stack, false);
}

const char* name_of(Meeting meeting) {
  static const char* const names[] = {"nothing",    "__syncthreads",   "__syncthreads_and",
                                      "__syncwarp", "__shfl_xor_sync", "__ballot_sync",
                                      "__any_sync", "__all_sync",      "__reduce_max_sync"};
  return names[int(meeting)];
}

std::string thread_state(unsigned thread) {
  const Fiber& fiber = *machine.fibers[thread];
  return "thread " + std::to_string(thread) +
         (fiber.finished ? " has returned" : std::string(" waits at ") + name_of(fiber.meeting));
}

[[noreturn]] void diverged(const std::string& one, const std::string& other) {
  for (auto& fiber : machine.fibers) (void)fiber.release();  // suspended: cannot be used again
  machine.fibers.clear();
  throw std::runtime_error("emulator: block " + std::to_string(blockIdx.x) + ": " + one + ", " +
                           other);
}

// What each of the lanes that met gets.
void exchange(const std::vector<unsigned>& lanes, unsigned first_thread) {
  uint64_t bits = 0;
  int64_t most = INT64_MIN;
  for (const unsigned lane : lanes) {
    const uint64_t value = machine.fibers[first_thread + lane]->value;
    bits |= (value & 1u) << lane;
    most = std::max(most, int64_t(value));
  }
  const bool all = size_t(__builtin_popcountll(bits)) == lanes.size();
  for (const unsigned lane : lanes) {
    Fiber& fiber = *machine.fibers[first_thread + lane];
    switch (fiber.meeting) {
      case Meeting::shuffle_xor:
        fiber.result = machine.fibers[first_thread + (lane ^ unsigned(fiber.argument))]->value;
        break;
      case Meeting::ballot:
        fiber.result = bits;
        break;
      case Meeting::any:
        fiber.result = bits != 0;
        break;
      case Meeting::all:
        fiber.result = all;
        break;
      case Meeting::max:
        fiber.result = uint64_t(most);
        break;
      default:
        fiber.result = 0;
    }
  }
  for (const unsigned lane : lanes) machine.fibers[first_thread + lane]->meeting = Meeting::none;
}

bool at_block_meeting(const Fiber& fiber) {
  return fiber.meeting == Meeting::block || fiber.meeting == Meeting::block_and;
}

// Lets lanes that met go on. True if any could.
bool release_warp(unsigned first_thread, unsigned count) {
  for (unsigned lane = 0; lane < count; ++lane) {
    const Fiber& fiber = *machine.fibers[first_thread + lane];
    if (fiber.finished || fiber.meeting == Meeting::none || at_block_meeting(fiber)) continue;
    std::vector<unsigned> lanes;
    bool complete = true;
    for (unsigned other = 0; other < count; ++other) {
      if (!(fiber.mask >> other & 1u)) continue;
      const Fiber& mate = *machine.fibers[first_thread + other];
      if (mate.finished || mate.meeting != fiber.meeting || mate.mask != fiber.mask ||
          mate.argument != fiber.argument)
        complete = false;
      lanes.push_back(other);
    }
    if (!complete) continue;
    exchange(lanes, first_thread);
    return true;
  }
  return false;
}

void run_warp(unsigned first_thread, unsigned count, bool reverse) {
  do {
    for (unsigned i = 0; i < count; ++i) {
      const unsigned lane = reverse ? count - 1 - i : i;
      Fiber& fiber = *machine.fibers[first_thread + lane];
      if (fiber.finished || fiber.meeting != Meeting::none) continue;
      threadIdx = {first_thread + lane, 0, 0};
      resume(fiber);
    }
  } while (release_warp(first_thread, count));
}

// Lets the block go on if all its threads wait at one barrier. False when all have returned.
bool release_block(unsigned threads) {
  const auto end = machine.fibers.begin() + threads;
  const auto waiting =
      std::find_if(machine.fibers.begin(), end, [](const auto& fiber) { return !fiber->finished; });
  if (waiting == end) return false;
  bool all = true;
  for (unsigned t = 0; t < threads; ++t) {
    const Fiber& fiber = *machine.fibers[t];
    if (fiber.finished || !at_block_meeting(fiber) || fiber.meeting != (*waiting)->meeting)
      diverged(thread_state(t), thread_state(unsigned(waiting - machine.fibers.begin())));
    all = all && fiber.value;
  }
  for (unsigned t = 0; t < threads; ++t) {
    machine.fibers[t]->result = all;
    machine.fibers[t]->meeting = Meeting::none;
  }
  return true;
}

void run_block(unsigned threads, bool reverse) {
  for (unsigned t = 0; t < threads; ++t) machine.fibers[t]->finished = false;
  const unsigned warps = (threads + kWarp - 1) / kWarp;
  do {
    for (unsigned i = 0; i < warps; ++i) {
      const unsigned first = (reverse ? warps - 1 - i : i) * kWarp;
      run_warp(first, std::min(kWarp, threads - first), reverse);
    }
  } while (release_block(threads));
}

}  // namespace

uint64_t meet(Meeting meeting, unsigned mask, uint64_t value, int argument) {
  Fiber& fiber = *machine.running;
  const uint3 thread = threadIdx;
  fiber.meeting = meeting;
  fiber.mask = mask;
  fiber.value = value;
  fiber.argument = argument;
  suspend();
  threadIdx = thread;
  return fiber.result;
}

void launch(unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
  const char* order = std::getenv("PYEXT_EMULATOR_ORDER");
  const bool reverse = order && !std::strcmp(order, "reverse");
  while (machine.fibers.size() < threads) machine.fibers.push_back(std::make_unique<Fiber>());
  machine.kernel = &kernel;
  for (unsigned block = 0; block < blocks; ++block) {
    blockIdx = {block, 0, 0};
    run_block(threads, reverse);
  }
}

}  // namespace pyext::emulator
