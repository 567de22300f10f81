// Gradients of points on circles: one block a point for its products with the two vectors, one
// thread a pair for what they say, then one thread an element of the pool.
#pragma once

#include "circle/cuda/interp.cuh"

namespace pyext::circle::cuda {

template <class S>
__global__ void __launch_bounds__(kThreads)
    products_kernel(InterpBackwardArgs<S> args, Weights* products) {
  const InterpArgs<S>& f = args.forward;
  const int64_t at = blockIdx.x, p = at / f.angles;
  const S *a = row_of(f, 2 * p), *b = row_of(f, 2 * p + 1), *g = args.g_z + at * f.width;
  double sums[2] = {0.0, 0.0};
  if (f.status[p] == 0)
    for (int64_t i = threadIdx.x; i < f.width; i += kThreads) {
      const double x = widen(g[i]);
      sums[0] += x * double(widen(a[i]));
      sums[1] += x * double(widen(b[i]));
    }
  block_sum(sums);
  if (threadIdx.x == 0) products[at] = {sums[0], sums[1]};
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    shares_kernel(InterpBackwardArgs<S> args, const Weights* products, Weights* weights,
                  Through* through) {
  const InterpArgs<S>& f = args.forward;
  const int64_t p = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (p >= f.pairs) return;
  const Gram gram{f.gram[3 * p], f.gram[3 * p + 1], f.gram[3 * p + 2]};
  const uint8_t status = f.status[p];
  PairSums sums;
  for (int64_t k = p * f.angles; k < (p + 1) * f.angles; ++k) {
    const double first = status == kOutside ? 0.0 : 1.0;
    weights[k] = status ? Weights{first, 0.0} : weights_of(f.norm, gram, f.angle[k]);
    args.g_angle[k] =
        status ? 0.0 : sums.add(f.norm, gram, f.angle[k], products[k].first, products[k].second);
  }
  through[p] = status ? Through{0.0, 0.0, 0.0} : sums.through(f.norm, gram);
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    rows_kernel(InterpBackwardArgs<S> args, const Weights* weights, const Through* through) {
  using T = Wide<S>;
  const InterpArgs<S>& f = args.forward;
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= f.rows * f.width) return;
  const int64_t row = at / f.width, i = at % f.width;
  T total = T(0);
  for (int64_t e = args.ends[row]; e < args.ends[row + 1]; ++e) {
    const int64_t p = args.entries[e] / 2, side = args.entries[e] % 2;
    for (int64_t k = p * f.angles; k < (p + 1) * f.angles; ++k) {
      const double weight = side ? weights[k].second : weights[k].first;
      if (weight != 0.0) total = fma(T(weight), widen(args.g_z[k * f.width + i]), total);
    }
    if (f.status[p]) continue;
    const S *own = row_of(f, 2 * p + side), *other = row_of(f, 2 * p + 1 - side);
    total = fma(T(side ? through[p].own_b : through[p].own_a), widen(own[i]), total);
    total = fma(T(through[p].across), widen(other[i]), total);
  }
  args.g_pool[at] = narrow<S>(total);
}

template <class S>
void interp_backward(const InterpBackwardArgs<S>& args, const Context& context) {
  const InterpArgs<S>& f = args.forward;
  const auto stream = cudaStream_t(context.stream);
  const int64_t points = f.pairs * f.angles;
  const auto scratch = [&](int64_t bytes) { return context.scratch(context.owner, bytes); };
  auto* products = static_cast<Weights*>(scratch(points * int64_t(sizeof(Weights))));
  auto* weights = static_cast<Weights*>(scratch(points * int64_t(sizeof(Weights))));
  auto* through = static_cast<Through*>(scratch(f.pairs * int64_t(sizeof(Through))));
  PYEXT_LAUNCH(products_kernel<S>, unsigned(points), kThreads, stream, args, products);
  PYEXT_LAUNCH(shares_kernel<S>, blocks_for(f.pairs, kThreads), kThreads, stream, args, products,
               weights, through);
  if (args.g_pool)
    PYEXT_LAUNCH(rows_kernel<S>, blocks_for(f.rows * f.width, kThreads), kThreads, stream, args,
                 weights, through);
}

}  // namespace pyext::circle::cuda
