#include "core/fma_peak.h"

#include <chrono>
#include <cstdint>
#include <vector>

#include "core/isa.h"
#include "core/parallel.h"

namespace pyext {

namespace baseline {
double fma_chains(int64_t iterations);
}
#if defined(PYEXT_X86)
namespace avx2 {
double fma_chains(int64_t iterations);
}
namespace avx512 {
double fma_chains(int64_t iterations);
}
#endif

double fma_peak(double seconds) {
  auto chains = baseline::fma_chains;
#if defined(PYEXT_X86)
  if (isa() == "avx2") chains = avx2::fma_chains;
  if (isa().rfind("avx512", 0) == 0) chains = avx512::fma_chains;
#endif
  using Clock = std::chrono::steady_clock;
  std::vector<double> rates(size_t(thread_count()), 0.0);
  auto task = [&](int64_t index, int) {
    const auto start = Clock::now();
    double operations = 0, elapsed = 0;
    while (elapsed < seconds) {
      operations += chains(1 << 16);
      elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    }
    rates[size_t(index)] = operations / elapsed;
  };
  parallel_tasks(int64_t(rates.size()), task);
  double total = 0;
  for (const double rate : rates) total += rate;
  return total;
}

}  // namespace pyext
