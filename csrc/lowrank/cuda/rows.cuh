// Edits of rows: one block an edit. Gradients to factors: one thread a few columns' sums over an
// editor's edits, in the order in which they are named.
#pragma once

#include "lowrank/cuda/threads.cuh"
#include "lowrank/kernels.h"

namespace pyext::lowrank::cuda {

template <class S>
__device__ inline int64_t editor_of(const RowsArgs<S>& args, int64_t k) {
  return args.editor ? args.editor[k] : 0;
}

// Whether edit k names a row and an editor: on a device nobody has looked before.
template <class S>
__device__ inline bool is_edit(const RowsArgs<S>& args, int64_t k) {
  const int64_t row = args.row[k], e = editor_of(args, k);
  return row >= 0 && row < args.rows && e >= 0 && e < args.editors;
}

// out[j] = x . factors_j for j < rank, over the block.
template <class S>
__device__ inline void block_dots(const S* x, const float* factors, int64_t rank, int64_t width,
                                  float* out) {
  for (int64_t first = 0; first < rank; first += kTogether) {
    float sums[kTogether] = {};
    for (int64_t c = threadIdx.x; c < width; c += kThreads) {
      const float value = widen(x[c]);
      PYEXT_UNROLL
      for (int j = 0; j < kTogether; ++j)
        if (first + j < rank) sums[j] = fmaf(value, factors[(first + j) * width + c], sums[j]);
    }
    const float sum = block_sum_each<kWarps>(sums);
    if (threadIdx.x < kTogether && first + threadIdx.x < rank) out[first + threadIdx.x] = sum;
  }
  __syncthreads();
}

template <class S>
__global__ void __launch_bounds__(kThreads) rows_kernel(RowsArgs<S> args) {
  __shared__ float into[kMaxRank], inside[kMaxRank];
  const int64_t k = blockIdx.x, r = args.rank, D = args.width;
  if (!is_edit(args, k)) {
    for (int64_t c = threadIdx.x; args.kept && c < D; c += kThreads)
      args.kept[k * D + c] = narrow<S>(0.0f);
    if (args.z && threadIdx.x < r) args.z[k * r + threadIdx.x] = args.u[k * r + threadIdx.x] = 0.0f;
    return;
  }
  const int64_t e = editor_of(args, k);
  const float *A = args.A + e * r * D, *B = args.B + e * r * D;
  const S* h = args.h + args.row[k] * D;
  S* out = args.out + args.row[k] * D;
  block_dots(h, A, r, D, into);
  if (args.form != Form::add) block_dots(h, B, r, D, inside);
  const int64_t j = threadIdx.x;
  if (j < r) {
    const float shift = args.a ? args.a[e * r + j] : 0.0f;
    const auto value =
        edit_of(args.form, args.act, into[j] + shift, args.form == Form::add ? 0.0f : inside[j]);
    if (args.z) args.z[k * r + j] = value.z, args.u[k * r + j] = value.u;
    into[j] = args.scale ? args.scale[e] * value.u : value.u;
  }
  __syncthreads();
  for (int64_t c = threadIdx.x; c < D; c += kThreads) {
    const S before = h[c];
    if (args.kept) args.kept[k * D + c] = before;
    float value = widen(before);
    for (int64_t i = 0; i < r; ++i) value = fmaf(into[i], B[i * D + c], value);
    out[c] = narrow<S>(value);
  }
}

template <class S>
void rows(const RowsArgs<S>& args, const Context& context) {
  if constexpr (sizeof(S) < 8)
    PYEXT_LAUNCH(rows_kernel<S>, unsigned(args.edits), kThreads, cudaStream_t(context.stream),
                 args);
}

// The edits editor after editor, and what is known of each: see the CPU's.
struct EditShares {
  int64_t *order, *ends;  // [K], [E]
  float *values, *scale;  // [K, 3 r] and [K], by edit
};

// Which edits are whose: a thread an editor, one block.
template <class S>
__global__ void __launch_bounds__(kThreads) sort_kernel(RowsArgs<S> args, EditShares shares) {
  for (int64_t e = threadIdx.x; e < args.editors; e += kThreads) {
    int64_t own = 0;
    for (int64_t k = 0; k < args.edits; ++k) own += is_edit(args, k) && editor_of(args, k) == e;
    shares.ends[e] = own;
  }
  __syncthreads();
  for (int64_t e = 1; threadIdx.x == 0 && e < args.editors; ++e)
    shares.ends[e] += shares.ends[e - 1];
  __syncthreads();
  for (int64_t e = threadIdx.x; e < args.editors; e += kThreads) {
    int64_t at = e ? shares.ends[e - 1] : 0;
    for (int64_t k = 0; k < args.edits; ++k)
      if (is_edit(args, k) && editor_of(args, k) == e) shares.order[at++] = k;
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    differentiate_kernel(RowsBackwardArgs<S> args, EditShares shares) {
  __shared__ float products[kMaxRank], into[kMaxRank], inside[kMaxRank];
  const RowsArgs<S>& f = args.forward;
  const int64_t k = blockIdx.x, r = f.rank, D = f.width;
  if (!is_edit(f, k)) return;
  const int64_t e = editor_of(f, k);
  const float *A = f.A + e * r * D, *B = f.B + e * r * D;
  const S* g = args.g + f.row[k] * D;
  block_dots(g, B, r, D, products);
  const int64_t j = threadIdx.x;
  if (j < r) {
    const float scale = f.scale ? f.scale[e] : 1.0f, u = f.u[k * r + j];
    const auto g_rank = edit_backward(f.form, f.act, f.z[k * r + j], scale * products[j]);
    float* values = shares.values + k * 3 * r;
    values[j] = into[j] = g_rank.into;
    values[r + j] = inside[j] = g_rank.inside;
    values[2 * r + j] = scale * u;
    products[j] *= u;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    float along = 0.0f;
    for (int64_t i = 0; i < r; ++i) along += products[i];
    shares.scale[k] = along;
  }
  if (!args.g_h) return;
  for (int64_t c = threadIdx.x; c < D; c += kThreads) {
    float value = widen(g[c]);
    for (int64_t i = 0; i < r; ++i) value = fmaf(into[i], A[i * D + c], value);
    for (int64_t i = 0; i < r && f.form != Form::add; ++i)
      value = fmaf(inside[i], B[i * D + c], value);
    args.g_h[f.row[k] * D + c] = narrow<S>(value);
  }
}

// Gradients to a bias and a scale: one block an editor.
template <class S>
__global__ void __launch_bounds__(kThreads)
    sum_ranks_kernel(RowsBackwardArgs<S> args, EditShares shares) {
  const int64_t e = blockIdx.x, r = args.forward.rank, j = threadIdx.x;
  const int64_t begin = e ? shares.ends[e - 1] : 0, end = shares.ends[e];
  float sum = 0.0f;
  if (j < r && args.g_a) {
    for (int64_t at = begin; at < end; ++at) sum += shares.values[shares.order[at] * 3 * r + j];
    args.g_a[e * r + j] = sum;
  }
  if (j == kThreads - 1 && args.g_scale) {
    for (int64_t at = begin; at < end; ++at) sum += shares.scale[shares.order[at]];
    args.g_scale[e] = sum;
  }
}

// A column of a few rows of an editor's gradients a thread.
template <class S>
__global__ void __launch_bounds__(kThreads)
    sum_factors_kernel(RowsBackwardArgs<S> args, EditShares shares, int64_t tiles, int64_t blocks) {
  const RowsArgs<S>& f = args.forward;
  const int64_t r = f.rank, D = f.width, e = blockIdx.x / blocks / tiles;
  const int64_t first = blockIdx.x / blocks % tiles * kTogether;
  const int64_t c = blockIdx.x % blocks * kThreads + threadIdx.x;
  if (c >= D) return;
  float g_A[kTogether] = {}, g_B[kTogether] = {};
  for (int64_t at = e ? shares.ends[e - 1] : 0; at < shares.ends[e]; ++at) {
    const int64_t k = shares.order[at];
    const float h = widen(f.kept[k * D + c]), g = widen(args.g[f.row[k] * D + c]);
    const float* values = shares.values + k * 3 * r + first;
    PYEXT_UNROLL
    for (int j = 0; j < kTogether; ++j) {
      if (first + j >= r) continue;
      g_A[j] = fmaf(values[j], h, g_A[j]);
      g_B[j] = fmaf(values[2 * r + j], g, fmaf(values[r + j], h, g_B[j]));
    }
  }
  PYEXT_UNROLL
  for (int j = 0; j < kTogether; ++j) {
    if (first + j >= r) continue;
    const int64_t at = (e * r + first + j) * D + c;
    if (args.g_A) args.g_A[at] = g_A[j];
    if (args.g_B) args.g_B[at] = g_B[j];
  }
}

template <class S>
void rows_backward(const RowsBackwardArgs<S>& args, const Context& context) {
  if constexpr (sizeof(S) < 8) {
    const RowsArgs<S>& f = args.forward;
    const auto stream = cudaStream_t(context.stream);
    auto* integers = static_cast<int64_t*>(
        context.scratch(context.owner, (f.edits + f.editors) * int64_t(sizeof(int64_t))));
    auto* values = static_cast<float*>(
        context.scratch(context.owner, f.edits * (3 * f.rank + 1) * int64_t(sizeof(float))));
    const EditShares shares{integers, integers + f.edits, values, values + f.edits * 3 * f.rank};
    PYEXT_LAUNCH(sort_kernel<S>, 1u, kThreads, stream, f, shares);
    PYEXT_LAUNCH(differentiate_kernel<S>, unsigned(f.edits), kThreads, stream, args, shares);
    if (args.g_a || args.g_scale)
      PYEXT_LAUNCH(sum_ranks_kernel<S>, unsigned(f.editors), kThreads, stream, args, shares);
    if (!args.g_A && !args.g_B) return;
    const int64_t tiles = blocks_for(f.rank, kTogether), blocks = blocks_for(f.width, kThreads);
    PYEXT_LAUNCH(sum_factors_kernel<S>, unsigned(f.editors * tiles * blocks), kThreads, stream,
                 args, shares, tiles, blocks);
  }
}

}  // namespace pyext::lowrank::cuda
