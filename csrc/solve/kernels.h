// The contract between the torch binding and every backend of the family `solve`.
//
// A backend sees raw pointers and sizes only; bind/ has checked them. Activations come in any
// storage type, which the kernels widen as they read; sums and solves are in double.
#pragma once

#include <cstdint>

#include "core/context.h"
#include "core/half.h"
#include "core/macros.h"

namespace pyext::solve {

enum class Storage { f32, bf16, f16, f64 };

// Rows of activations: `count` times `width` values, the rows `stride` values apart.
struct Rows {
  const void* data;
  Storage type;
  int64_t count, width, stride;
};

// Which rows count, how much, and for which accumulator.
struct Segments {
  int64_t count;
  const int64_t* ends;   // [count + 1], or null for one segment of all rows
  const double* weight;  // [rows] or null for 1; rows of weight 0 are not looked at
};

// So many rows at a time have the sum of their products added to the rest: made in float, where
// products are. A tile's values of as many rows fit the second-level cache.
constexpr int64_t kChunk = 256;

// gram[s] += x_s^T diag(weight) x_s, the lower triangle.
struct GramArgs {
  Rows x;
  Segments segments;
  Storage products;  // f64, or f32 where no row is f64
  double* gram;      // [S, d, d]
};

// h = x a^T, of rows of weight 0 zeros.
struct ProjectArgs {
  Rows x;
  const double* weight;  // [rows] or null
  int64_t outputs;
  const double* a;  // [outputs, d]
  float* h;         // [rows, outputs] out, or null
  double* h_wide;   // the same
};

// cross[s] += left_s^T diag(weight) right_s.
struct CrossArgs {
  Rows left, right;
  Segments segments;
  Storage products;  // f64, or f32 where no row is f64
  double* cross;     // [S, p, d]
};

// out[s] += sum over rows of segment s of weight (y - bias)^2.
struct SumsqArgs {
  Rows y;
  const double* bias;  // [o] or null
  Segments segments;
  double* out;  // [S]
};

// out[l] = sum_i lam[l, i] (grams[i] + gamma[l, i] I), lower triangles, zeros above.
struct CombineArgs {
  int64_t modules, count, d;
  const double *grams, *lam, *gamma;
  double* out;
};

// norms[i] = Frobenius norm of the symmetric matrix whose lower triangle grams[i] has.
struct NormArgs {
  int64_t count, d;
  const double* grams;
  double* norms;
};

// What `info` of a matrix says that has an entry which is not finite.
constexpr int32_t kNotFinite = INT32_MIN;

// The lower factor of each matrix in place of it, zeros above. What fails at pivot k is tried again
// with jitter0 times the largest magnitude on its diagonal added to the diagonal, then with a
// hundred times that, and so on.
struct FactorArgs {
  int64_t count, d;
  double* g;  // [count, d, d]; a matrix that no try factors is symmetric afterwards, as it came
  double jitter0;
  int64_t tries;
  int32_t* info;   // [count] out: the try that succeeded, or -pivot of the first, or kNotFinite
  double* jitter;  // [count] out
  double* norm;    // [count] out: 1-norm of the matrix, jitter included
};

// z = z C^-T C^-1 for the lower factor C of each matrix whose info is not negative.
struct SubstituteArgs {
  int64_t count, rows, d;
  const double* factor;  // [count, d, d]
  const int32_t* info;   // [count]
  double* z;             // [count, rows, d] in and out
  double* half;          // [count, rows, d] out or null: z C^-T
};

#define PYEXT_SOLVE_KERNELS(X) \
  X(gram, GramArgs)            \
  X(project, ProjectArgs)      \
  X(cross, CrossArgs)          \
  X(sumsq, SumsqArgs)          \
  X(combine, CombineArgs)      \
  X(norm, NormArgs)            \
  X(factor, FactorArgs)        \
  X(substitute, SubstituteArgs)

// One backend: the kernels, one an op or a step of one.
struct Backend {
#define PYEXT_SOLVE_ENTRY(name, Args) void (*name)(const Args&, const Context&);
  PYEXT_SOLVE_KERNELS(PYEXT_SOLVE_ENTRY)
#undef PYEXT_SOLVE_ENTRY
};

// Where row `row` begins, as values of S.
template <class S>
PYEXT_HD const S* row_of(const Rows& rows, int64_t row) {
  return static_cast<const S*>(rows.data) + row * rows.stride;
}

// Calls body(S()) for the storage type.
template <class Body>
PYEXT_HD void for_storage(Storage type, Body body) {
  if (type == Storage::f32) body(float());
  if (type == Storage::bf16) body(BFloat16());
  if (type == Storage::f16) body(Float16());
  if (type == Storage::f64) body(double());
}

PYEXT_HD double weight_of(const double* weight, int64_t row) { return weight ? weight[row] : 1.0; }

PYEXT_HD int64_t first_row(const Segments& segments, int64_t s) {
  return segments.ends ? segments.ends[s] : 0;
}
PYEXT_HD int64_t last_row(const Segments& segments, int64_t s, int64_t rows) {
  return segments.ends ? segments.ends[s + 1] : rows;
}

}  // namespace pyext::solve
