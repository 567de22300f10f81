// Solutions with Cholesky factors: sixteen right-hand sides at a time, one a lane.
#pragma once

#include "solve/cpu/tiles.h"
#include "solve/kernels.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::solve;

// x = C^-1 x, for x [d][16].
inline void substitute_forward(const double* factor, int64_t d, double* x) {
  for (int64_t begin = 0; begin < d; begin += kTall) {
    const int64_t end = begin + kTall < d ? begin + kTall : d;
    const double* rows = factor + begin * d;
    D sums[kTall];
    PYEXT_UNROLL
    for (int i = 0; i < kTall; ++i) sums[i] = D(0.0);
    if (end - begin == kTall) {
      multiply(begin, rows, d, 1, x, sums);
    } else {
      for (int64_t k = 0; k < begin; ++k)
        for (int64_t i = 0; i < end - begin; ++i)
          sums[i] = fma(D(rows[i * d + k]), D::load(x + k * kLanes), sums[i]);
    }
    for (int64_t i = begin; i < end; ++i) {
      D value = D::load(x + i * kLanes) - sums[i - begin];
      for (int64_t k = begin; k < i; ++k)
        value = fnma(D(factor[i * d + k]), D::load(x + k * kLanes), value);
      (value / D(factor[i * d + i])).store(x + i * kLanes);
    }
  }
}

// x = C^-T x.
inline void substitute_backward(const double* factor, int64_t d, double* x) {
  for (int64_t end = d; end > 0;) {
    const int64_t begin = end > kTall ? end - kTall : 0;
    for (int64_t i = end - 1; i >= begin; --i) {
      D value = D::load(x + i * kLanes);
      for (int64_t k = i + 1; k < end; ++k)
        value = fnma(D(factor[k * d + i]), D::load(x + k * kLanes), value);
      (value / D(factor[i * d + i])).store(x + i * kLanes);
    }
    const double* rows = factor + begin * d;
    D known[kTall];
    PYEXT_UNROLL
    for (int i = 0; i < kTall; ++i)
      known[i] = begin + i < end ? D::load(x + (begin + i) * kLanes) : D(0.0);
    if (end - begin == kTall) {
      for (int64_t k = 0; k < begin; ++k) {
        D value = D::load(x + k * kLanes);
        PYEXT_UNROLL
        for (int i = 0; i < kTall; ++i) value = fnma(D(rows[i * d + k]), known[i], value);
        value.store(x + k * kLanes);
      }
    }
    end = begin;
  }
}

inline void substitute(const SubstituteArgs& args, const Context& context) {
  const int64_t d = args.d, groups = panels_of(args.rows);
  auto* memory =
      static_cast<double*>(context.scratch(context.owner, thread_count() * d * kLanes * 8));
  for_tasks(true, args.count * groups, [&](int64_t task, int worker) {
    const int64_t item = task / groups, first = task % groups * kLanes;
    if (args.info[item] < 0) return;
    const int64_t count = args.rows - first < kLanes ? args.rows - first : kLanes;
    const double* factor = args.factor + item * d * d;
    const int64_t offset = (item * args.rows + first) * d;
    double* x = memory + worker * d * kLanes;
    for (int64_t c = 0; c < d; ++c)
      for (int64_t i = 0; i < kLanes; ++i)
        x[c * kLanes + i] = i < count ? args.z[offset + i * d + c] : 0.0;
    const auto store = [&](double* out) {
      for (int64_t i = 0; i < count; ++i)
        for (int64_t c = 0; c < d; ++c) out[offset + i * d + c] = x[c * kLanes + i];
    };
    substitute_forward(factor, d, x);
    if (args.half) store(args.half);
    substitute_backward(factor, d, x);
    store(args.z);
  });
}

}  // namespace pyext::PYEXT_ISA
