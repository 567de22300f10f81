// Arguments of the kernels of mixtures, and of many LoRAs in one batch.
#pragma once

#include <cstdint>

#include "core/activation.h"
#include "core/context.h"
#include "core/half.h"
#include "core/macros.h"

namespace pyext::lowrank {

constexpr int kMostAdapters = 64;  // of a mixture

// The adapters of a mixture: their ranks side by side are the columns of u. Passed by value, so
// that a device sees it without a copy.
struct Adapters {
  int32_t count, rank;               // E, and r: an adapter of a lower rank uses its factors' first
                                     // rows
  int32_t first[kMostAdapters + 1];  // adapter e's columns are from first[e] to first[e + 1]
  bool inner[kMostAdapters];         // has an inner map
  bool frozen[kMostAdapters];        // its A, B, a, c and scale need no gradient
  PYEXT_HD int rank_of(int e) const { return first[e + 1] - first[e]; }
  PYEXT_HD int columns() const { return first[count]; }
};

template <class S>
struct MixArgs {
  using T = Wide<S>;
  int64_t rows, in, out;  // N, Din, Do
  Adapters adapters;
  Activation act;
  const S* x;               // [N, Din]
  const S* base;            // [N, Do] or null
  const T *A, *B;           // [E, r, Din], [E, r, Do]
  bool stored_A, stored_B;  // all values of A, or of B and c, are such as S holds
  const T *a, *c;           // [E, r], [E, Do] or null
  const T *M, *m;           // [E, r, r], [E, r] or null
  const T *scale, *gate;    // [E], [N, E] or null
  S* y;                     // [N, Do] out; it may be base
  T* u;                     // [N, columns] out
};

// Null results are not computed; those of a frozen adapter's A, B, a, c and scale are zero.
template <class S>
struct MixBackwardArgs {
  using T = Wide<S>;
  MixArgs<S> forward;  // u is read; base and y are not
  const S* g_y;        // [N, Do]
  S* g_x;              // [N, Din]
  T *g_A, *g_B, *g_a, *g_c, *g_M, *g_m, *g_scale, *g_gate;
};

constexpr int kMostRagged = 512;  // adapters of different ranks

// Adapters of rows: row n's is adapter[n], none where that is not within [0, E). Their factors lie
// one after another; where ranks differ, `first` tells where. By value, so that a device sees it
// without a copy.
struct Routing {
  int64_t rows, adapters, rank;  // N, E, and the largest rank: the columns of z
  const int64_t* adapter;        // [N]
  bool ragged;
  int32_t first[kMostRagged + 1];  // ragged: factor e is rows first[e] to first[e + 1] of all
  PYEXT_HD bool has(int64_t n) const { return adapter[n] >= 0 && adapter[n] < adapters; }
  PYEXT_HD int64_t first_of(int64_t e) const { return ragged ? first[e] : e * rank; }
  PYEXT_HD int64_t rank_of(int64_t e) const { return ragged ? first[e + 1] - first[e] : rank; }
};

// z[n] = s W x[n]; zeros beyond the rank of n's adapter
template <class S>
struct LoraShrinkArgs {
  using T = Wide<S>;
  Routing routing;
  int64_t width, stride;  // of a row of x, and from one to the next
  const S* x;
  const T* W;      // [E, r, width], or [sum of ranks, width]
  const T* scale;  // [E] or null
  T* z;            // [N, r] out
};

// y[n] = s W^T z[n], or that added to what is there
template <class S>
struct LoraExpandArgs {
  using T = Wide<S>;
  Routing routing;
  int64_t width, stride;  // of a row of y, and from one to the next
  const T* z;             // [N, r]
  const T* W;             // as above
  const T* scale;         // [E] or null
  bool add;
  S* y;  // out
};

// G_e = sum over e's rows of s z[n] x[n]^T
template <class S>
struct LoraOuterArgs {
  using T = Wide<S>;
  Routing routing;
  int64_t width, stride;  // of a row of x, and from one to the next
  const T* z;             // [N, r]
  const S* x;
  const T* scale;  // [E] or null
  T* G;            // as W, out
};

#define PYEXT_LOWRANK_MIX_KERNELS(X) \
  X(mix, MixArgs)                    \
  X(mix_backward, MixBackwardArgs)   \
  X(lora_shrink, LoraShrinkArgs)     \
  X(lora_expand, LoraExpandArgs)     \
  X(lora_outer, LoraOuterArgs)

}  // namespace pyext::lowrank
