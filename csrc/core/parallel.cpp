#include "core/parallel.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <set>
#include <thread>

namespace pyext {

int thread_count() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

void run_tasks(int64_t tasks, void (*task)(void*, int64_t, int), void* data) {
  const int64_t workers = std::min<int64_t>(thread_count(), tasks);
  if (workers <= 1) {
    for (int64_t i = 0; i < tasks; ++i) task(data, i, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker)
      for (int64_t i = next++; i < tasks; i = next++) task(data, i, int(worker));
  });
}

int running_threads() {
  std::mutex mutex;
  std::set<std::thread::id> seen;
  std::atomic<int> arrived{0};
  const int workers = thread_count();
  auto task = [&](int64_t, int) {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      seen.insert(std::this_thread::get_id());
    }
    // Wait for the others, so that no thread takes a second task; give up if one never comes.
    ++arrived;
    for (int spin = 0; spin < 100000 && arrived < workers; ++spin) std::this_thread::yield();
  };
  parallel_tasks(workers, task);
  return int(seen.size());
}

}  // namespace pyext
