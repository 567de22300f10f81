// Maximum plus mean of square windows of a map, for sixteen channels at a time: they lie side by
// side in the result.
#pragma once

#include "core/parallel.h"
#include "core/simd_half.h"
#include "side/kernels.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::side;

constexpr int kPoolColumns = 128;  // of a map's rows, that are looked at at once

// Maximum and sum of the columns of r rows, joined by windows of r columns. `columns` are at most
// kPoolColumns, and whole windows or a part of one.
template <class S>
void pool_columns(const S* x, int64_t stride, int64_t r, int columns, Wide<S>* best,
                  Wide<S>* total) {
  Wide<S> most[kPoolColumns], sum[kPoolColumns];
  for_each_lanes(columns, [&](int64_t i, auto lanes) {
    WideLanes<S> m = load_wide(x + i, lanes), s = m;
    for (int64_t row = 1; row < r; ++row) {
      const WideLanes<S> v = load_wide(x + row * stride + i, lanes);
      m = vmax(m, v);
      s = s + v;
    }
    m.store(most + i);
    s.store(sum + i);
  });
  for (int first = 0, j = 0; first < columns; first += int(r), ++j) {
    const int last = columns - first < r ? columns : first + int(r);
    for (int i = first; i < last; ++i) {
      best[j] = most[i] > best[j] ? most[i] : best[j];
      total[j] += sum[i];
    }
  }
}

// The windows of one row of them, for `count` channels. x points to the first window's corner, y
// to its result.
template <class S>
void maxavg_row(const MaxavgPoolArgs<S>& args, const S* x, S* y, int count) {
  const int64_t r = args.r, windows = args.width / r;
  const int step = r < kPoolColumns ? int(kPoolColumns / r) : 1;
  const Wide<S> share = Wide<S>(1) / Wide<S>(r * r);
  for (int64_t first = 0; first < windows; first += step) {
    const int these = int(windows - first < step ? windows - first : step);
    Wide<S> best[kLanes][kPoolColumns], total[kLanes][kPoolColumns];
    for (int c = 0; c < count; ++c) {
      const S* corner = x + c * args.height * args.width + first * r;
      for (int j = 0; j < these; ++j) {
        best[c][j] = widen(corner[j * r]);
        total[c][j] = Wide<S>(0);
      }
      for (int64_t at = 0; at < these * r; at += kPoolColumns) {
        const int64_t left = these * r - at;
        pool_columns(corner + at, args.width, r, int(left < kPoolColumns ? left : kPoolColumns),
                     best[c], total[c]);
      }
    }
    for (int j = 0; j < these; ++j)
      for (int c = 0; c < count; ++c)
        y[(first + j) * args.channels + c] = narrow<S>(best[c][j] + total[c][j] * share);
  }
}

template <class S>
void maxavg_pool(const MaxavgPoolArgs<S>& args, const Context&) {
  const int64_t C = args.channels, rows = args.height / args.r, windows = args.width / args.r;
  const int64_t groups = (C + kLanes - 1) / kLanes;
  auto task = [&](int64_t index, int) {
    const int64_t group = index % groups, row = index / groups % rows;
    const int64_t batch = index / (groups * rows), channel = group * kLanes;
    const S* x = args.x + ((batch * C + channel) * args.height + row * args.r) * args.width;
    S* y = args.y + (batch * rows + row) * windows * C + channel;
    maxavg_row(args, x, y, int(C - channel < kLanes ? C - channel : kLanes));
  };
  parallel_tasks(args.batches * rows * groups, task);
}

}  // namespace pyext::PYEXT_ISA
