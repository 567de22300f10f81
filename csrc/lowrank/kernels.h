// The contract between the torch binding and every backend of the family `lowrank`.
//
// A backend (one CPU instruction set, or CUDA) fills one table of function pointers for each
// storage type S. It sees raw pointers and sizes only: shapes, dtypes and contiguity were checked
// by bind/. Arrays are contiguous where no stride is named. Factors, gates, scales and rank
// intermediates are Wide<S>: float, or double for double.
#pragma once

#include "lowrank/mix_kernels.h"
#include "lowrank/rows_kernels.h"

namespace pyext::lowrank {

// The kernels of a backend, one line an op: X(name, type of its arguments).
#define PYEXT_LOWRANK_KERNELS(X) \
  PYEXT_LOWRANK_ROWS_KERNELS(X)  \
  PYEXT_LOWRANK_MIX_KERNELS(X)

template <class S>
struct Kernels {
#define PYEXT_LOWRANK_ENTRY(name, Args) void (*name)(const Args<S>&, const Context&);
  PYEXT_LOWRANK_KERNELS(PYEXT_LOWRANK_ENTRY)
#undef PYEXT_LOWRANK_ENTRY
};

// One backend. f64 is null where a backend has no double.
struct Backend {
  const Kernels<float>* f32;
  const Kernels<BFloat16>* bf16;
  const Kernels<Float16>* f16;
  const Kernels<double>* f64;
};

}  // namespace pyext::lowrank
