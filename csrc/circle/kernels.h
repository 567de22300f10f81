// The contract between the torch binding and every backend of the family `circle`.
//
// A backend (one CPU instruction set, or CUDA) fills one table of function pointers for each
// storage type S. It sees raw pointers and sizes only: shapes, dtypes and contiguity were checked
// by bind/. Arrays are contiguous. Products and sums over a vector are in double, combinations of
// vectors in Wide<S>: float, or double for double.
#pragma once

#include <cstdint>

#include "circle/math.h"
#include "core/context.h"
#include "core/half.h"

namespace pyext::circle {

template <class S>
struct InterpArgs {
  int64_t rows, pairs, angles, width;  // N, P, K, D
  int64_t copies;                      // of z, one after the other
  Norm norm;
  double min_sin;
  const S* pool;         // [N, D]
  const int64_t* index;  // [P, 2]
  const double* angle;   // [P, K]
  double* gram;          // [P, 3] out: |a|^2, |b|^2, a.b
  uint8_t* status;       // [P] out
  S* z;                  // [copies, P, K, D] out
};

template <class S>
struct InterpBackwardArgs {
  InterpArgs<S> forward;  // gram and status are read, z is not; copies is 1
  const S* g_z;           // [P, K, D]
  double* g_angle;        // [P, K] out
  // Entries 2 p + side, those of one row of the pool after another, in rising order within a row;
  // row n's are from ends[n] to ends[n + 1]. Null, as g_pool, where the pool has no gradient.
  const int64_t *entries, *ends;  // [2 P], [N + 1]
  S* g_pool;                      // [N, D] out
};

template <class S>
struct DdimAffineStepArgs {
  int64_t samples, width;  // B, D
  int64_t copies;          // of y, one after the other
  double guidance, clip;   // clip: 0 for none
  const S* eps;            // [B, D]: of the condition
  const S* unconditional;  // [B, D] or null for no guidance
  const S* x;              // [B, D]
  const double* coef;      // [B, 2], or [B, 5] where there is a clip
  int64_t coef_stride;     // 0: one row for all samples
  S* y;                    // [copies, B, D] out
};

// The kernels of a backend, one line an op: X(name, type of its arguments).
#define PYEXT_CIRCLE_KERNELS(X)          \
  X(interp, InterpArgs)                  \
  X(interp_backward, InterpBackwardArgs) \
  X(ddim_affine_step, DdimAffineStepArgs)

template <class S>
struct Kernels {
#define PYEXT_CIRCLE_ENTRY(name, Args) void (*name)(const Args<S>&, const Context&);
  PYEXT_CIRCLE_KERNELS(PYEXT_CIRCLE_ENTRY)
#undef PYEXT_CIRCLE_ENTRY
};

// One backend. f64 is null where a backend has no double.
struct Backend {
  const Kernels<float>* f32;
  const Kernels<BFloat16>* bf16;
  const Kernels<Float16>* f16;
  const Kernels<double>* f64;
};

}  // namespace pyext::circle
