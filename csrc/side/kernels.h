// The contract between the torch binding and every backend of the family `side`.
//
// A backend (one CPU instruction set, or CUDA) fills one table of function pointers for each
// storage type S. It sees raw pointers and sizes only: shapes, dtypes and contiguity were checked
// by bind/. Arrays are contiguous unless they come with strides. Wide<S> is what S is computed in:
// float, or double for double. Matrix products are not in the table: bind/ asks the vendor's
// library for them and hands the result, of type Wide<S>, to a kernel that does all the rest.
#pragma once

#include <cstdint>

#include "core/context.h"
#include "core/half.h"
#include "side/mixing.h"

namespace pyext::side {

template <class S>
struct MaxavgPoolArgs {
  int64_t batches, channels, height, width, r;
  const S* x;  // [B, C, H, W]
  S* y;        // [B, H / r * W / r, C] out
};

template <class S>
struct GuidedPoolArgs {
  int64_t batches, channels, height, width, rows, columns;  // windows: rows x columns
  double eps;
  const S* x;      // [B, C, H, W]
  const S* guide;  // [B, C, rows, columns]
  S* y;            // [B, rows * columns, C] out
  Wide<S>* score;  // [B, H, W] out: of a place with its window's guide, before the ReLU
};

template <class S>
struct GuidedPoolBackwardArgs {
  GuidedPoolArgs<S> forward;  // inputs and the forward's score; y is not read
  const S* g_y;               // [B, rows * columns, C]
  S* g_guide;                 // [B, C, rows, columns] out
  S* g_x;                     // [B, C, H, W] out or null
};

// The kernels of a backend, one line an op: X(name, type of its arguments).
#define PYEXT_SIDE_KERNELS(X)    \
  PYEXT_SIDE_MIXING_KERNELS(X)   \
  X(maxavg_pool, MaxavgPoolArgs) \
  X(guided_pool, GuidedPoolArgs) \
  X(guided_pool_backward, GuidedPoolBackwardArgs)

template <class S>
struct Kernels {
#define PYEXT_SIDE_ENTRY(name, Args) void (*name)(const Args<S>&, const Context&);
  PYEXT_SIDE_KERNELS(PYEXT_SIDE_ENTRY)
#undef PYEXT_SIDE_ENTRY
};

// One backend. f64 is null where a backend has no double.
struct Backend {
  const Kernels<float>* f32;
  const Kernels<BFloat16>* bf16;
  const Kernels<Float16>* f16;
  const Kernels<double>* f64;
};

}  // namespace pyext::side
