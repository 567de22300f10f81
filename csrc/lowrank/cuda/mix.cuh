// The gated sum of low-rank adapters and its gradients: products, and one thread a row and adapter
// for what lies between.
#pragma once

#include "lowrank/activation.h"
#include "lowrank/cuda/products.cuh"

namespace pyext::lowrank::cuda {

// g s of one row and adapter.
template <class S>
__device__ inline Wide<S> weight_of(const MixArgs<S>& args, int64_t n, int e) {
  const Wide<S> gate = args.gate ? args.gate[n * args.adapters.count + e] : Wide<S>(1);
  return args.scale ? gate * args.scale[e] : gate;
}

// The argument of the activation at rank i of adapter e, from the adapter's ranks of one row.
template <class S>
__device__ inline Wide<S> inner_map(const MixArgs<S>& args, int e, const Wide<S>* u, int i) {
  if (!args.adapters.inner[e]) return u[i];
  const int64_t row = int64_t(e) * args.adapters.rank + i;
  const Wide<S>* map = args.M + row * args.adapters.rank;
  Wide<S> sum = args.m ? args.m[row] : Wide<S>(0);
  for (int j = 0; j < args.adapters.rank_of(e); ++j) sum += map[j] * u[j];
  return sum;
}

// From the products with A, in u, to u and to the coefficients of B's rows.
template <class S>
__global__ void __launch_bounds__(kThreads)
    mix_ranks_kernel(MixArgs<S> args, int columns, Wide<S>* coefficients) {
  const int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  const Adapters& adapters = args.adapters;
  if (i >= args.rows * adapters.count) return;
  const int64_t n = i / adapters.count;
  const int e = int(i % adapters.count), first = adapters.first[e], rank = adapters.rank_of(e);
  Wide<S>* u = args.u + n * adapters.columns() + first;
  for (int j = 0; args.a && j < rank; ++j) u[j] += args.a[int64_t(e) * adapters.rank + j];
  Wide<S>* out = coefficients + n * columns;
  const Wide<S> weight = weight_of(args, n, e);
  for (int j = 0; j < rank; ++j)
    out[first + j] = weight * activated(args.act, inner_map(args, e, u, j));
  if (args.c) out[adapters.columns() + e] = weight;
}

template <class S>
void mix(const MixArgs<S>& args, const Context& context) {
  using T = Wide<S>;
  const auto stream = cudaStream_t(context.stream);
  const FactorRows<T> A{args.A, nullptr, args.in, args.adapters};
  const FactorRows<T> B{args.B, args.c, args.out, args.adapters};
  T* coefficients = scratch_values<T>(context, args.rows * B.count());
  project(args.x, args.rows, A, args.u, stream);
  PYEXT_LAUNCH(mix_ranks_kernel<S>, blocks_for(args.rows * args.adapters.count, kThreads), kThreads,
               stream, args, B.count(), coefficients);
  spread(coefficients, args.rows, B, args.base, args.y, stream);
}

// Rank values of the backward, [N, columns] each: `p` comes with the products with B's rows and c.
template <class S>
struct RankGradients {
  using T = Wide<S>;
  int columns;  // of p and v
  T* p;         // gradients to the activations' arguments; their inner part
  T* v;         // coefficients of B's rows, and of c
  T* du;        // [N, columns of u]
  T* scale;     // [N, E]
};

template <class S>
__global__ void __launch_bounds__(kThreads)
    mix_backward_ranks_kernel(MixBackwardArgs<S> args, RankGradients<S> ranks) {
  using T = Wide<S>;
  const MixArgs<S>& f = args.forward;
  const Adapters& adapters = f.adapters;
  const int64_t index = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (index >= f.rows * adapters.count) return;
  const int64_t n = index / adapters.count;
  const int e = int(index % adapters.count), first = adapters.first[e], rank = adapters.rank_of(e);
  const T* u = f.u + n * adapters.columns() + first;
  T *p = ranks.p + n * ranks.columns + first, *v = ranks.v + n * ranks.columns + first;
  T* du = ranks.du + n * adapters.columns() + first;
  const T weight = weight_of(f, n, e);
  T inside = f.c ? ranks.p[n * ranks.columns + adapters.columns() + e] : T(0);
  for (int i = 0; i < rank; ++i) {
    const T argument = inner_map(f, e, u, i), result = activated(f.act, argument);
    inside += p[i] * result;
    p[i] = activated_backward(f.act, argument, weight * p[i]);
    v[i] = weight * result;
    du[i] = adapters.inner[e] ? T(0) : p[i];
  }
  if (f.c) ranks.v[n * ranks.columns + adapters.columns() + e] = weight;
  for (int i = 0; adapters.inner[e] && i < rank; ++i) {
    const T* map = f.M + (int64_t(e) * adapters.rank + i) * adapters.rank;
    for (int j = 0; j < rank; ++j) du[j] += p[i] * map[j];
  }
  if (args.g_gate) args.g_gate[index] = f.scale ? f.scale[e] * inside : inside;
  ranks.scale[index] = (f.gate ? f.gate[index] : T(1)) * inside;
}

// Where the sums of column j go in arrays [E, r, width].
template <class T>
struct RankPlace {
  Adapters adapters;
  T* out;
  int64_t width;
  bool all;  // those of frozen adapters, too, if they have an inner map
  __device__ T* operator()(int j, int64_t column) const {
    int e = 0;
    while (j >= adapters.first[e + 1]) ++e;
    if (all ? !adapters.inner[e] : adapters.frozen[e]) return nullptr;
    return out + (int64_t(e) * adapters.rank + j - adapters.first[e]) * width + column;
  }
};

// The same for the inner maps: products of columns of one adapter.
template <class T>
struct InnerPlace {
  Adapters adapters;
  T* out;
  __device__ T* operator()(int j, int64_t column) const {
    int e = 0;
    while (j >= adapters.first[e + 1]) ++e;
    const int64_t i = column - adapters.first[e];
    if (!adapters.inner[e] || i < 0 || i >= adapters.rank_of(e)) return nullptr;
    return out + (int64_t(e) * adapters.rank + j - adapters.first[e]) * adapters.rank + i;
  }
};

// Arrays [E, width].
template <class T>
struct AdapterPlace {
  Adapters adapters;
  T* out;
  int64_t width;
  __device__ T* operator()(int e, int64_t column) const {
    return adapters.frozen[e] ? nullptr : out + e * width + column;
  }
};

template <class T>
void clear(T* values, int64_t count, const Context& context) {
  if (values)
    check_cuda(cudaMemsetAsync(values, 0, size_t(count) * sizeof(T), cudaStream_t(context.stream)),
               "clear");
}

template <class T>
__global__ void one_kernel(T* value) {
  *value = T(1);
}

template <class S>
void parameter_gradients(const MixBackwardArgs<S>& args, const RankGradients<S>& ranks,
                         const Context& context) {
  using T = Wide<S>;
  const MixArgs<S>& f = args.forward;
  const Adapters& adapters = f.adapters;
  const int64_t E = adapters.count, r = adapters.rank;
  clear(args.g_A, E * r * f.in, context), clear(args.g_B, E * r * f.out, context);
  clear(args.g_a, E * r, context), clear(args.g_c, E * f.out, context);
  clear(args.g_M, E * r * r, context), clear(args.g_m, E * r, context);
  clear(args.g_scale, E, context);
  T* one = scratch_values<T>(context, 1);
  PYEXT_LAUNCH(one_kernel<T>, 1, 1, cudaStream_t(context.stream), one);
  const int columns = adapters.columns();
  const Terms<T> du{ranks.du, columns, columns}, v{ranks.v, ranks.columns, columns};
  const Terms<T> p{ranks.p, ranks.columns, columns};
  const Terms<T> weights{ranks.v + columns, ranks.columns, int(E)}, scale{ranks.scale, E, int(E)};
  if (args.g_A)
    outer(du, f.x, f.rows, f.in, f.in, RankPlace<T>{adapters, args.g_A, f.in, false}, context);
  if (args.g_B)
    outer(v, args.g_y, f.rows, f.out, f.out, RankPlace<T>{adapters, args.g_B, f.out, false},
          context);
  if (args.g_a) outer(du, one, f.rows, 1, 0, RankPlace<T>{adapters, args.g_a, 1, false}, context);
  if (args.g_m) outer(p, one, f.rows, 1, 0, RankPlace<T>{adapters, args.g_m, 1, true}, context);
  if (args.g_M) outer(p, f.u, f.rows, columns, columns, InnerPlace<T>{adapters, args.g_M}, context);
  if (args.g_c)
    outer(weights, args.g_y, f.rows, f.out, f.out, AdapterPlace<T>{adapters, args.g_c, f.out},
          context);
  if (args.g_scale)
    outer(scale, one, f.rows, 1, 0, AdapterPlace<T>{adapters, args.g_scale, 1}, context);
}

template <class S>
void mix_backward(const MixBackwardArgs<S>& args, const Context& context) {
  using T = Wide<S>;
  const MixArgs<S>& f = args.forward;
  const auto stream = cudaStream_t(context.stream);
  const FactorRows<T> A{f.A, nullptr, f.in, f.adapters}, B{f.B, f.c, f.out, f.adapters};
  const RankGradients<S> ranks{B.count(), scratch_values<T>(context, f.rows * B.count()),
                               scratch_values<T>(context, f.rows * B.count()),
                               scratch_values<T>(context, f.rows * A.count()),
                               scratch_values<T>(context, f.rows * f.adapters.count)};
  project(args.g_y, f.rows, B, ranks.p, stream);
  PYEXT_LAUNCH(mix_backward_ranks_kernel<S>, blocks_for(f.rows * f.adapters.count, kThreads),
               kThreads, stream, args, ranks);
  if (args.g_x) spread<S>(ranks.du, f.rows, A, nullptr, args.g_x, stream);
  parameter_gradients(args, ranks, context);
}

}  // namespace pyext::lowrank::cuda
