// Weighted sums and norms of symmetric matrices that are stored as lower triangles.
#pragma once

#include <cmath>

#include "core/simd_half.h"
#include "solve/cpu/tiles.h"
#include "solve/kernels.h"

namespace pyext::PYEXT_ISA {

inline void combine(const CombineArgs& args, const Context&) {
  const int64_t d = args.d;
  for_tasks(true, args.modules * d, [&](int64_t task, int) {
    const int64_t module = task / d, row = task % d;
    const double *lam = args.lam + module * args.count, *gamma = args.gamma + module * args.count;
    double* out = args.out + task * d;
    for_each_lanes(row + 1, [&](int64_t c, auto lanes) {
      D sum(0.0);
      for (int64_t i = 0; i < args.count; ++i)
        sum = fma(D(lam[i]), load_wide(args.grams + (i * d + row) * d + c, lanes), sum);
      store_narrow<double>(sum, out + c, lanes);
    });
    for (int64_t i = 0; i < args.count; ++i) out[row] += lam[i] * gamma[i];
    for (int64_t c = row + 1; c < d; ++c) out[c] = 0.0;
  });
}

inline void norm(const NormArgs& args, const Context& context) {
  const int64_t d = args.d;
  auto* squares = static_cast<double*>(context.scratch(context.owner, args.count * d * 8));
  for_tasks(true, args.count * d, [&](int64_t task, int) {
    const int64_t row = task % d;
    const double* values = args.grams + task * d;
    D sum(0.0);
    for_each_lanes(row, [&](int64_t c, auto lanes) {
      const D x = load_wide(values + c, lanes);
      sum = fma(x, x, sum);
    });
    squares[task] = 2 * sum.sum() + values[row] * values[row];
  });
  for (int64_t i = 0; i < args.count; ++i) {
    double sum = 0.0;
    for (int64_t row = 0; row < d; ++row) sum += squares[i * d + row];
    args.norms[i] = std::sqrt(sum);
  }
}

}  // namespace pyext::PYEXT_ISA
