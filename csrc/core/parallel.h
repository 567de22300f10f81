// Loops over torch's intra-op threads, without torch's headers.
#pragma once

#include <cstdint>

namespace pyext {

int thread_count();

// How many operating-system threads really run a parallel loop now.
int running_threads();

// Runs task(data, index, worker) for every index in [0, tasks), each claimed by whichever thread
// is free next; worker < thread_count(). Results must not depend on who computes what.
void run_tasks(int64_t tasks, void (*task)(void* data, int64_t index, int worker), void* data);

// The same for any callable (int64_t index, int worker).
template <class Function>
void parallel_tasks(int64_t tasks, Function& function) {
  run_tasks(
      tasks,
      [](void* data, int64_t index, int worker) { (*static_cast<Function*>(data))(index, worker); },
      &function);
}

}  // namespace pyext
