// The contract between the torch binding and every backend of the family `side`.
//
// A backend (one CPU instruction set, or CUDA) fills one table of function pointers for each
// storage type S. It sees raw pointers and sizes only: shapes, dtypes and contiguity were checked
// by bind/. Arrays are contiguous unless they come with strides. Wide<S> is what S is computed in:
// float, or double for double. Matrix products are not in the table: bind/ asks the vendor's
// library for them and hands the result, of type Wide<S>, to a kernel that does all the rest.
#pragma once

#include <cstdint>

#include "core/activation.h"
#include "core/context.h"
#include "core/half.h"
#include "core/macros.h"
#include "side/mixing.h"
#include "side/product.h"

namespace pyext::side {

// Where a row of one tap lies in an array [B, K, N, d] of either layout.
struct RowMap {
  int64_t tokens, sample_stride, token_stride;
  PYEXT_HD int64_t operator()(int64_t row) const {
    return row / tokens * sample_stride + row % tokens * token_stride;
  }
};

// y = act(x) of so many values; of float16 also the copy that products are made of.
template <class S>
struct ActivateArgs {
  int64_t count;
  Activation act;
  const S* x;
  Product<S>* y;  // out
};

template <class S>
struct ActivateBackwardArgs {
  int64_t count;
  Activation act;
  const S* x;
  const Product<S>* g_y;
  S* g_x;  // out
};

// From the product of rows [first, first + count) of a tap with its matrix to h.
template <class S>
struct ProjectArgs {
  int64_t channels, first, count;
  Activation post_act;
  bool norm;  // over the channels
  double eps;
  const Product<S>* product;  // [count, d]
  const S* bias;              // [d] or null
  RowMap at;                  // of h, from the tap's first row on; all rows are counted by it
  S* h;                       // out
  RowMap stat_at;             // of rstd; strides count rows
  Wide<S>* rstd;              // out, 1 / sigma; null without a norm
};

// From the gradients of h, its means and its sums to that of product + bias.
template <class S>
struct ProjectBackwardArgs {
  ProjectArgs<S> forward;  // h and rstd are read; product only for gelu and quick_gelu
  RowMap g_at;             // of g_h, as `at`
  const S* g_h;
  const int32_t* samples;    // [rows]: which sample a row belongs to; null: row / tokens
  const bool* mask;          // [rows] or null
  const Wide<S>* share;      // [B]: weight of a row in its sample's mean
  const Wide<S>* g_pool;     // [B, K, d], from the tap on; null if there are no means
  int64_t g_pool_stride;     // from sample to sample
  const Wide<S>* g_sums;     // [d] or null: of the sum over rows that count
  const Wide<S>* g_squares;  // [d] or null: of their squares
  Product<S>* g_product;     // [count, d] out
};

// From the product of rows with the gate's first matrix to ReLU(product + bias), stored and copied.
template <class S>
struct GatedHiddenArgs {
  int64_t channels, first, count;
  const Product<S>* product;  // [count, d]
  const S* bias;              // [d]
  RowMap at;                  // of hidden, from the tap's first row on
  S* hidden;                  // out
  Product<S>* copy;           // [count, d] out, of the rounded values
};

// The copy alone, of what is stored.
template <class S>
struct CopyRowsArgs {
  int64_t channels, first, count;
  RowMap at;
  const S* rows;
  Product<S>* copy;  // [count, d] out
};

// f = (value + bias2 + hidden) o sigmoid(gate + bias3), of products of the hidden rows.
template <class S>
struct GatedArgs {
  int64_t channels, first, count;
  const Product<S>*hidden, *value, *gate;  // [count, d]
  const S *bias2, *bias3;                  // [d]
  RowMap at;                               // of f, from the tap's first row on
  S* f;                                    // out
};

template <class S>
struct GatedBackwardArgs {
  GatedArgs<S> forward;  // f is not read
  RowMap g_at;           // of g_f, as `at`
  const S* g_f;
  Product<S>*g_value, *g_gate;  // [count, d] out
};

// g = (skip + through) where hidden > 0: the gradient before the first ReLU.
template <class S>
struct GatedJoinArgs {
  int64_t count;  // of values
  const Product<S>*hidden, *skip, *through;
  Product<S>* g;  // out
};

// Which elements stay: by their index, a seed, and a share of 2^32.
struct Dropout {
  uint32_t key[2];
  uint64_t dropped;  // of 2^32
  double scale;      // of what stays; 0: there is no dropout
};

// From the product of rows with a matrix to
// out_scale Dropout(post_act(norm(product + bias))) + res_scale residual.
template <class S>
struct UpArgs {
  int64_t channels, first, count;  // E
  Activation post_act;
  double eps;
  const Product<S>* product;            // [count, E]
  const S* bias;                        // [E] or null
  const Wide<S>*gamma, *beta;           // [E], or null without a norm
  const S* residual;                    // [rows, E] or null
  const Wide<S>*res_scale, *out_scale;  // one value, or null for 1
  Dropout dropout;
  S* y;           // [rows, E] out
  S* xhat;        // [rows, E] out, null without a norm
  Wide<S>* rstd;  // [rows] out, null without a norm
};

template <class S>
struct UpBackwardArgs {
  UpArgs<S> forward;      // xhat, rstd and product are read, y is not; without a norm `product` is
                          //   needed for an activation but relu and none, and for g_scales
  const S* g_y;           // [rows, E]
  Product<S>* g_product;  // [count, E] out
  S* g_normed;            // [count, E] out: to gamma xhat + beta; null without a norm
  Wide<S>* g_scales;      // [rows, 2] out or null: shares of res_scale's and out_scale's gradients
};

// Sums of an array's rows over spans of neighbouring rows: sums[s] = sum over the rows of span s.
template <class S>
struct SpanSumsArgs {
  int64_t channels, spans;
  const int64_t* ends;  // [spans + 1]: span s is the rows from ends[s] to ends[s + 1]
  RowMap at;
  const S* rows;
  const bool* mask;   // [rows] or null: which rows count
  const S* others;    // where `products` are wanted
  Wide<S>* sums;      // [spans, d] out
  Wide<S>* products;  // [spans, d] out or null: sums of rows times others
};

// out[g] = scale[g] * sum over the spans of group g, in their order.
template <class S>
struct JoinSpansArgs {
  int64_t channels, groups;
  const int64_t* ends;   // [groups + 1]: group g is the spans from ends[g] to ends[g + 1]
  const Wide<S>* sums;   // [spans, d]
  const Wide<S>* scale;  // [groups] or null for 1
  Wide<S>* out;          // [groups, d] out, out_stride from group to group
  int64_t out_stride;
};

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
#define PYEXT_SIDE_KERNELS(X)                \
  PYEXT_SIDE_MIXING_KERNELS(X)               \
  X(activate, ActivateArgs)                  \
  X(activate_backward, ActivateBackwardArgs) \
  X(project, ProjectArgs)                    \
  X(project_backward, ProjectBackwardArgs)   \
  X(gated_hidden, GatedHiddenArgs)           \
  X(copy_rows, CopyRowsArgs)                 \
  X(gated, GatedArgs)                        \
  X(gated_backward, GatedBackwardArgs)       \
  X(gated_join, GatedJoinArgs)               \
  X(up, UpArgs)                              \
  X(up_backward, UpBackwardArgs)             \
  X(span_sums, SpanSumsArgs)                 \
  X(join_spans, JoinSpansArgs)               \
  X(maxavg_pool, MaxavgPoolArgs)             \
  X(guided_pool, GuidedPoolArgs)             \
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
