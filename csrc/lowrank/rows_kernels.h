// Arguments of the kernels that edit rows, orthonormalize editors and gate adapters.
#pragma once

#include <cstdint>

#include "core/context.h"
#include "core/half.h"
#include "lowrank/edit.h"

namespace pyext::lowrank {

constexpr int kMaxRank = 128;

template <class S>
struct RowsArgs {
  int64_t rows, edits, editors, rank, width;  // N, K, E, r, D
  Activation act;
  Form form;
  const S* h;             // [N, D]; of it the edited rows are read
  const Wide<S>*A, *B;    // [E, r, D]
  const Wide<S>* a;       // [E, r] or null
  const int64_t* row;     // [K]: of h; -1 for none
  const int64_t* editor;  // [K], or null where there is one editor
  const Wide<S>* scale;   // [E] or null for 1
  S* out;                 // [N, D]: a copy of h, or h itself
  S* kept;                // [K, D] out or null: the rows as they were, zeros for none
  Wide<S>*z, *u;          // [K, r] out or null, with kept: see RankValue
};

template <class S>
struct RowsBackwardArgs {
  RowsArgs<S> forward;  // kept, z and u are read, h and out are not
  const S* g;           // [N, D]
  S* g_h;               // [N, D] or null: a copy of g, whose edited rows are corrected
  Wide<S>*g_A, *g_B;    // [E, r, D] out or null
  Wide<S>* g_a;         // [E, r] out or null
  Wide<S>* g_scale;     // [E] out or null
};

// x = l r with orthonormal rows of r. A matrix for which there is none has NaN on its diagonal
// of l.
template <class S>
struct OrthonormalizeArgs {
  int64_t count, rank, width;
  double least;  // a diagonal entry of l must exceed this times the norm of its x
  const S* x;    // [count, rank, width]
  S* r;          // [count, rank, width] out
  S* l;          // [count, rank, rank] out, lower triangular
};

template <class S>
struct OrthonormalizeBackwardArgs {
  int64_t count, rank, width;
  const S *g, *r, *l;  // g: to r
  S* g_x;              // [count, rank, width] out
};

// gate = softmax over the largest of l = x w + eps (softplus(x w_noise) + floor).
template <class S>
struct NoisyGateArgs {
  int64_t rows, width, experts;  // N, D, E
  int64_t topk;                  // how many of a row count
  double floor;
  const S* x;           // [N, D]
  const Wide<S>* w;     // [E, D], or [2 E, D] with noise, whose half is the second
  const Wide<S>* eps;   // [N, E] or null for no noise
  Wide<S>* gate;        // [N, E] out
  Wide<S>* logits;      // [N, E] out
  Wide<S>* deviations;  // [N, E] out: x w_noise; null without noise
};

template <class S>
struct NoisyGateBackwardArgs {
  NoisyGateArgs<S> forward;  // gate and deviations are read, logits are not
  const Wide<S>*g_gate, *g_logits;
  S* g_x;        // [N, D] out or null
  Wide<S>* g_w;  // as w, out, or null
};

#define PYEXT_LOWRANK_ROWS_KERNELS(X)                    \
  X(rows, RowsArgs)                                      \
  X(rows_backward, RowsBackwardArgs)                     \
  X(orthonormalize, OrthonormalizeArgs)                  \
  X(orthonormalize_backward, OrthonormalizeBackwardArgs) \
  X(noisy_gate, NoisyGateArgs)                           \
  X(noisy_gate_backward, NoisyGateBackwardArgs)

}  // namespace pyext::lowrank
