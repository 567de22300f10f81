// What forward and backward of a mixture share: the adapters' ranks side by side, and what an
// adapter makes of the ranks of one row.
#pragma once

#include <cstring>

#include "core/parallel.h"
#include "lowrank/activation.h"
#include "lowrank/cpu/pairs.h"
#include "lowrank/kernels.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::lowrank;

constexpr int kTileRows = 32;  // whose wide rows stay in the second-level cache
template <class S>
constexpr int kMixRows =
    64 / int(sizeof(S)) < kTileRows ? 64 / int(sizeof(S)) : kTileRows;  // of a mixture's tile

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
  int64_t stride;  // of a row of rank values in scratch memory: a vector may reach beyond the last

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
    stride = (blocks_of(B_count) + 1) * kLanes;
  }
};

// Of sums of neighbouring rows: the base of those summed next.
template <class S>
constexpr Ahead next_sums(int64_t width) {
  return {false, kSumRows * width * int64_t(sizeof(S))};
}

// Of sums of a tile's rows: the same place of the next tile, or, where a tile outgrows the first
// cache by far, what follows in the row.
template <class S>
constexpr Ahead next_terms(int64_t width) {
  return {true, sizeof(S) == 2 ? kMixRows<S> * width * int64_t(sizeof(S)) : kAhead / 2};
}

// The products of rows with all rows of a factor, which are laid out for it once.
template <class S>
class Projection {
  using T = Wide<S>;
  int64_t width_, columns_;
  const T* panels_ = nullptr;
  const uint32_t* pairs_ = nullptr;  // in place of panels

 public:
  // `stored`: all values of the factor are such as S holds.
  Projection(const T* const* factor, int64_t columns, int64_t width, bool stored,
             const Context& context)
      : width_(width), columns_(columns) {
#if defined(__AVX512BF16__)
    if constexpr (std::is_same_v<S, BFloat16>) {
      if (stored) {
        auto* pairs =
            scratch_values<uint32_t>(context, blocks_of(columns) * (width + 1) / 2 * kLanes);
        pack_pairs(factor, columns, width, pairs);
        pairs_ = pairs;
        return;
      }
    }
#endif
    (void)stored;
    T* panels = scratch_values<T>(context, blocks_of(columns) * width * kLanes);
    pack(factor, columns, width, panels);
    panels_ = panels;
  }

  // Of a tile of `count` rows that lie one after another: row i's products begin at out + i stride.
  void operator()(const S* const* rows, int count, T* out, int64_t stride) const {
    const int64_t next = kSums<T> * width_ * int64_t(sizeof(S));  // as many rows later
#if defined(__AVX512BF16__)
    if constexpr (std::is_same_v<S, BFloat16>)
      if (pairs_) return project_pairs(count, rows, width_, pairs_, columns_, out, stride, next);
#endif
    project(count, rows, width_, panels_, columns_, out, stride, next);
  }
};

// The inner maps: of each adapter where it starts, a row of zeros without biases, then the rows to
// be added up, all of whole vectors.
template <class T>
class InnerMaps {
  T* values_ = nullptr;
  int64_t rank_, padded_;

  T* row(int64_t e, int64_t i) const { return values_ + (e * (rank_ + 1) + i) * padded_; }

 public:
  // Of M's columns from the biases, or of its rows from nothing, as the gradient takes them.
  template <class S>
  InnerMaps(const MixArgs<S>& args, bool columns, const Context& context)
      : rank_(args.adapters.rank), padded_(blocks_of(rank_) * kLanes) {
    if (!args.M) return;
    const int64_t size = args.adapters.count * (rank_ + 1) * padded_;
    values_ = scratch_values<T>(context, size);
    memset(values_, 0, size_t(size) * sizeof(T));
    for (int64_t e = 0; e < args.adapters.count; ++e) {
      const T* M = args.M + e * rank_ * rank_;
      for (int64_t j = 0; columns && args.m && j < rank_; ++j) row(e, 0)[j] = args.m[e * rank_ + j];
      for (int64_t i = 0; i < rank_; ++i)
        for (int64_t j = 0; j < rank_; ++j)
          row(e, 1 + i)[j] = columns ? M[j * rank_ + i] : M[i * rank_ + j];
    }
  }

  // What adapter e's map makes of its `own` ranks at `from`. Whole vectors are written.
  PYEXT_INLINE void operator()(int64_t e, int own, const T* from, T* to) const {
    for (int64_t at = 0; at < own; at += kLanes) {
      Lanes<T> sum = Lanes<T>::load(row(e, 0) + at);
      for (int i = 0; i < own; ++i)
        sum = fma(Lanes<T>(from[i]), Lanes<T>::load(row(e, 1 + i) + at), sum);
      sum.store(to + at);
    }
  }
};

// g s of one row and adapter.
template <class S>
PYEXT_INLINE Wide<S> weight_of(const MixArgs<S>& args, int64_t n, int e) {
  const Wide<S> gate = args.gate ? args.gate[n * args.adapters.count + e] : Wide<S>(1);
  return args.scale ? gate * args.scale[e] : gate;
}

// The arguments of the activation, from an adapter's ranks of one row. Whole vectors are written.
template <class S>
PYEXT_INLINE void inner_map(const MixArgs<S>& args, const InnerMaps<Wide<S>>& maps, int e,
                            const Wide<S>* u, Wide<S>* v) {
  const int rank = args.adapters.rank_of(e);
  if (args.adapters.inner[e])
    maps(e, rank, u, v);
  else
    memcpy(v, u, size_t(rank) * sizeof(Wide<S>));
}

}  // namespace pyext::PYEXT_ISA
