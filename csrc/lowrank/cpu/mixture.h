// What forward and backward of a mixture share: the adapters' ranks side by side, and what an
// adapter makes of the ranks of one row.
#pragma once

#include "core/parallel.h"
#include "lowrank/activation.h"
#include "lowrank/cpu/products.h"
#include "lowrank/kernels.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::lowrank;

constexpr int kTileRows = 32;  // whose wide rows stay in the second-level cache

// Rows of an array, one after another.
template <class S>
struct RowPointers {
  S* at[kTileRows];
  RowPointers(S* first, int64_t stride, int count) {
    for (int i = 0; i < count; ++i) at[i] = first + i * stride;
  }
};

template <class T>
T* scratch_values(const Context& context, int64_t count) {
  return static_cast<T*>(context.scratch(context.owner, count * int64_t(sizeof(T))));
}

// The rows of the factors that belong to the columns of u.
template <class S>
struct FactorRows {
  using T = Wide<S>;
  const T **A, **B;  // behind B's rows those of c, if there is one
  int64_t A_count, B_count;
  int64_t stride;  // of a row of rank values in scratch memory

  FactorRows(const MixArgs<S>& args, const Context& context)
      : A_count(args.adapters.columns()), B_count(A_count + (args.c ? args.adapters.count : 0)) {
    A = scratch_values<const T*>(context, A_count + 1);
    B = scratch_values<const T*>(context, B_count + 1);
    const int64_t rank = args.adapters.rank;
    for (int e = 0, j = 0; e < args.adapters.count; ++e)
      for (int i = 0; i < args.adapters.rank_of(e); ++i, ++j) {
        A[j] = args.A + (e * rank + i) * args.in;
        B[j] = args.B + (e * rank + i) * args.out;
      }
    for (int e = 0; args.c && e < args.adapters.count; ++e) B[A_count + e] = args.c + e * args.out;
    stride = blocks_of(B_count) * kLanes;
  }
};

template <class T>
T* packed(const T* const* rows, int64_t count, int64_t width, const Context& context) {
  T* panels = scratch_values<T>(context, blocks_of(count) * width * kLanes);
  pack(rows, count, width, panels);
  return panels;
}

// g s of one row and adapter.
template <class S>
PYEXT_INLINE Wide<S> weight_of(const MixArgs<S>& args, int64_t n, int e) {
  const Wide<S> gate = args.gate ? args.gate[n * args.adapters.count + e] : Wide<S>(1);
  return args.scale ? gate * args.scale[e] : gate;
}

// The argument of the activation, from an adapter's ranks of one row.
template <class S>
PYEXT_INLINE void inner_map(const MixArgs<S>& args, int e, const Wide<S>* u, Wide<S>* v) {
  const int rank = args.adapters.rank_of(e);
  if (!args.adapters.inner[e]) {
    for (int i = 0; i < rank; ++i) v[i] = u[i];
    return;
  }
  const int64_t at = int64_t(e) * args.adapters.rank;
  for (int i = 0; i < rank; ++i) {
    const Wide<S>* map = args.M + (at + i) * args.adapters.rank;
    Wide<S> sum = args.m ? args.m[at + i] : Wide<S>(0);
    for (int j = 0; j < rank; ++j) sum += map[j] * u[j];
    v[i] = sum;
  }
}

}  // namespace pyext::PYEXT_ISA
