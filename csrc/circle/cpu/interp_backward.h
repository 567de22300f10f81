// Gradients of points on circles: products with the two vectors first, then sums for each vector
// of the pool, in the order of the pairs it is in.
#pragma once

#include "circle/cpu/interp.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::circle;

constexpr int64_t kSumChunk = 1024;  // elements of a row that are summed at a time

// A pair's shares, as the sums over its points take them: out of scratch memory.
struct PairShares {
  double* weights;   // [P, K, 2]
  Through* through;  // [P]
};

template <class S>
void differentiate_pair(const InterpBackwardArgs<S>& args, const PairShares& shares, int64_t p) {
  using V = Lanes<double>;
  const InterpArgs<S>& f = args.forward;
  const PairOf<S> pair(f, p);
  const Gram gram{f.gram[3 * p], f.gram[3 * p + 1], f.gram[3 * p + 2]};
  PairSums sums;
  for (int64_t k = p * f.angles; k < (p + 1) * f.angles; ++k) {
    const Weights w = pair ? weights_at(f, p, k - p * f.angles) : Weights{0.0, 0.0};
    shares.weights[2 * k] = w.first, shares.weights[2 * k + 1] = w.second;
    args.g_angle[k] = 0.0;
    if (f.status[p]) continue;
    const S* g = args.g_z + k * f.width;
    V ga(0.0), gb(0.0);
    for_each_lanes(f.width, [&](int64_t i, auto lanes) {
      const V x = load_double(g + i, lanes);
      ga = fma(x, load_double(pair.a + i, lanes), ga);
      gb = fma(x, load_double(pair.b + i, lanes), gb);
    });
    args.g_angle[k] = sums.add(f.norm, gram, f.angle[k], ga.sum(), gb.sum());
  }
  shares.through[p] = f.status[p] ? Through{0.0, 0.0, 0.0} : sums.through(f.norm, gram);
}

// The gradient to elements [begin, begin + n) of row `row` of the pool.
template <class S>
void sum_row(const InterpBackwardArgs<S>& args, const PairShares& shares, int64_t row,
             int64_t begin, int64_t n) {
  using V = WideLanes<S>;
  using T = Wide<S>;
  const InterpArgs<S>& f = args.forward;
  V total[kSumChunk / kLanes];
  for (V& lanes : total) lanes = V(T(0));
  const auto add = [&](const S* x, double weight) {
    const V w{T(weight)};
    for_each_lanes(n, [&](int64_t i, auto lanes) {
      total[i / kLanes] = fma(w, load_wide(x + begin + i, lanes), total[i / kLanes]);
    });
  };
  for (int64_t e = args.ends[row]; e < args.ends[row + 1]; ++e) {
    const int64_t p = args.entries[e] / 2, side = args.entries[e] % 2;
    for (int64_t k = p * f.angles; k < (p + 1) * f.angles; ++k) {
      const double weight = shares.weights[2 * k + side];
      if (weight != 0.0) add(args.g_z + k * f.width, weight);
    }
    if (f.status[p]) continue;
    const PairOf<S> pair(f, p);
    const Through& through = shares.through[p];
    add(side ? pair.b : pair.a, side ? through.own_b : through.own_a);
    add(side ? pair.a : pair.b, through.across);
  }
  S* out = args.g_pool + row * f.width + begin;
  for_each_lanes(
      n, [&](int64_t i, auto lanes) { store_narrow<S>(total[i / kLanes], out + i, lanes); });
}

template <class S>
void interp_backward(const InterpBackwardArgs<S>& args, const Context& context) {
  const InterpArgs<S>& f = args.forward;
  const auto scratch = [&](int64_t count, int64_t size) {
    return context.scratch(context.owner, count * size);
  };
  const PairShares shares{
      static_cast<double*>(scratch(2 * f.pairs * f.angles, sizeof(double))),
      static_cast<Through*>(scratch(f.pairs, sizeof(Through))),
  };
  auto differentiate = [&](int64_t p, int) { differentiate_pair(args, shares, p); };
  parallel_tasks(f.pairs, differentiate);
  if (!args.g_pool) return;
  const int64_t chunks = (f.width + kSumChunk - 1) / kSumChunk;
  auto sum = [&](int64_t index, int) {
    const int64_t begin = index % chunks * kSumChunk, left = f.width - begin;
    sum_row(args, shares, index / chunks, begin, left < kSumChunk ? left : kSumChunk);
  };
  parallel_tasks(f.rows * chunks, sum);
}

}  // namespace pyext::PYEXT_ISA
