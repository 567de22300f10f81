// Maximum plus mean of square windows of a map, for sixteen channels at a time.
#pragma once

#include <limits>

#include "core/parallel.h"
#include "side/cpu/windows.h"
#include "side/kernels.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::side;

constexpr int kPoolWindows = 32;  // of a row of them, that are looked at at once

// Neighbouring windows of one row of them, for `count` channels. x points to the first window's
// corner, y to its result.
template <class S>
void maxavg_windows(const MaxavgPoolArgs<S>& args, const S* x, S* y, int64_t windows, int count) {
  using V = WideLanes<S>;
  using T = Wide<S>;
  const int64_t r = args.r, plane = args.height * args.width;
  V best[kPoolWindows], total[kPoolWindows];
  for (int64_t j = 0; j < windows; ++j) {
    best[j] = V(-std::numeric_limits<T>::infinity());
    total[j] = V(T(0));
  }
  for_each_lanes(windows * r, [&](int64_t i, auto lanes) {
    const auto columns = [&](auto join) {
      return [&, join](int c) {
        const S* top = x + c * plane + i;
        V value = load_wide(top, lanes);
        for (int64_t row = 1; row < r; ++row)
          value = join(value, load_wide(top + row * args.width, lanes));
        return value;
      };
    };
    by_window<V>(i, lanes, count, r, columns([](V a, V b) { return vmax(a, b); }),
                 [&](int64_t window, V value) { best[window] = vmax(best[window], value); });
    by_window<V>(i, lanes, count, r, columns([](V a, V b) { return a + b; }),
                 [&](int64_t window, V value) { total[window] = total[window] + value; });
  });
  const V share(T(1) / T(r * r));
  for (int64_t j = 0; j < windows; ++j)
    store_narrow<S>(fma(total[j], share, best[j]), y + j * args.channels, FirstLanes(count));
}

template <class S>
void maxavg_pool(const MaxavgPoolArgs<S>& args, const Context&) {
  const int64_t C = args.channels, r = args.r, rows = args.height / r, windows = args.width / r;
  const int64_t groups = (C + kLanes - 1) / kLanes;
  auto task = [&](int64_t index, int) {
    const int64_t group = index % groups, row = index / groups % rows;
    const int64_t batch = index / (groups * rows), channel = group * kLanes;
    const S* x = args.x + ((batch * C + channel) * args.height + row * r) * args.width;
    S* y = args.y + (batch * rows + row) * windows * C + channel;
    const int count = int(C - channel < kLanes ? C - channel : kLanes);
    for (int64_t j = 0; j < windows; j += kPoolWindows) {
      const int64_t these = windows - j < kPoolWindows ? windows - j : kPoolWindows;
      maxavg_windows(args, x + j * r, y + j * C, these, count);
    }
  };
  parallel_tasks(args.batches * rows * groups, task);
}

}  // namespace pyext::PYEXT_ISA
