// Cholesky decompositions of many matrices at once, blocked: of each step a diagonal block, the
// rows below it, and the update of what is left, a tile a block. Which matrices still need a try
// is kept on the device, so that nobody waits.
#pragma once

#include "solve/cuda/sums.cuh"

namespace pyext::solve::cuda {

constexpr int kBlock = 32;  // columns of a step, and sides of a tile

// What is known of a matrix between tries.
struct FactorState {
  double* diagonal;  // [count, d]: as it came
  double* largest;   // [count]: magnitude on the diagonal
  double* jitter;    // [count]: of this try
  int32_t* failed;   // [count]: pivot of this try, or 0
  int32_t* first;    // [count]: pivot of the first try
  int32_t* done;     // [count]: nothing is left to do
};

// Mirrors the lower triangle, where it outlives a failed try, and takes norms.
static __global__ void __launch_bounds__(kThreads)
    prepare_kernel(FactorArgs args, FactorState state) {
  __shared__ double norms[kThreads], totals[kThreads], largests[kThreads];
  const int64_t item = blockIdx.x, d = args.d;
  double* g = args.g + item * d * d;
  for (int64_t i = threadIdx.x; i < d * d; i += kThreads) {
    const int64_t row = i / d, column = i % d;
    if (column < row) g[column * d + row] = g[i];
  }
  __syncthreads();
  double norm = 0.0, total = 0.0, largest = 0.0;
  for (int64_t row = threadIdx.x; row < d; row += kThreads) {
    double sum = 0.0;
    for (int64_t column = 0; column < d; ++column) sum += fabs(g[row * d + column]);
    const double value = g[row * d + row];
    state.diagonal[item * d + row] = value;
    norm = sum > norm ? sum : norm;
    total += sum;
    largest = fabs(value) > largest ? fabs(value) : largest;
  }
  norms[threadIdx.x] = norm, totals[threadIdx.x] = total, largests[threadIdx.x] = largest;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kThreads; ++i) {
    norm = norms[i] > norm ? norms[i] : norm;
    largest = largests[i] > largest ? largests[i] : largest;
    total += totals[i];
  }
  const bool finite = total - total == 0.0;
  args.info[item] = kNotFinite;
  args.jitter[item] = 0.0;
  args.norm[item] = norm;
  state.largest[item] = largest;
  state.jitter[item] = 0.0;
  state.failed[item] = state.first[item] = 0;
  state.done[item] = !finite;
}

static __global__ void __launch_bounds__(kThreads)
    diagonal_kernel(FactorArgs args, FactorState state, int64_t begin) {
  __shared__ double block[kBlock][kBlock + 1];
  const int64_t item = blockIdx.x, d = args.d;
  if (state.done[item] || state.failed[item]) return;
  const int n = d - begin < kBlock ? int(d - begin) : kBlock;
  double* g = args.g + item * d * d + begin * d + begin;
  for (int i = int(threadIdx.x); i < n * n; i += kThreads)
    block[i / n][i % n] = g[i / n * d + i % n];
  __syncthreads();
  for (int k = 0; k < n; ++k) {
    const double pivot = block[k][k];
    __syncthreads();
    if (!(pivot > 0.0)) {  // the same for all threads
      if (threadIdx.x == 0) state.failed[item] = int32_t(begin + k + 1);
      return;
    }
    const double root = sqrt(pivot);
    if (threadIdx.x == 0) block[k][k] = root;
    const int i = int(threadIdx.x);
    if (i > k && i < n) block[i][k] /= root;
    __syncthreads();
    for (int j = int(threadIdx.x); j < n * n; j += kThreads) {
      const int row = j / n, column = j % n;
      if (column > k && column <= row) block[row][column] -= block[row][k] * block[column][k];
    }
    __syncthreads();
  }
  for (int i = int(threadIdx.x); i < n * n; i += kThreads)
    if (i % n <= i / n) g[i / n * d + i % n] = block[i / n][i % n];
}

// The rows below a diagonal block, one a thread.
static __global__ void __launch_bounds__(kThreads)
    panel_kernel(FactorArgs args, FactorState state, int64_t begin, int64_t blocks) {
  __shared__ double block[kBlock][kBlock + 1];
  const int64_t item = blockIdx.x / blocks, d = args.d;
  if (state.done[item] || state.failed[item]) return;
  double* g = args.g + item * d * d;
  for (int i = int(threadIdx.x); i < kBlock * kBlock; i += kThreads)
    block[i / kBlock][i % kBlock] = g[(begin + i / kBlock) * d + begin + i % kBlock];
  __syncthreads();
  const int64_t row = begin + kBlock + blockIdx.x % blocks * kThreads + threadIdx.x;
  if (row >= d) return;
  double* x = g + row * d + begin;
  for (int j = 0; j < kBlock; ++j) {
    double value = x[j];
    for (int k = 0; k < j; ++k) value -= x[k] * block[j][k];
    x[j] = value / block[j][j];
  }
}

// What is left, minus the product of the rows just found: a tile of the lower triangle a block.
static __global__ void __launch_bounds__(kThreads)
    trailing_kernel(FactorArgs args, FactorState state, int64_t begin, int64_t tiles) {
  __shared__ double left[kBlock][kBlock + 1], right[kBlock][kBlock + 1];
  const int64_t item = blockIdx.x / (tiles * tiles), tile = blockIdx.x % (tiles * tiles);
  const int64_t d = args.d, row0 = begin + kBlock + tile / tiles * kBlock;
  const int64_t column0 = begin + kBlock + tile % tiles * kBlock;
  if (column0 > row0 || state.done[item] || state.failed[item]) return;
  double* g = args.g + item * d * d;
  for (int i = int(threadIdx.x); i < kBlock * kBlock; i += kThreads) {
    const int64_t r = i / kBlock, k = i % kBlock;
    left[r][k] = row0 + r < d ? g[(row0 + r) * d + begin + k] : 0.0;
    right[r][k] = column0 + r < d ? g[(column0 + r) * d + begin + k] : 0.0;
  }
  __syncthreads();
  for (int i = int(threadIdx.x); i < kBlock * kBlock; i += kThreads) {
    const int r = i / kBlock, c = i % kBlock;
    double sum = 0.0;
    for (int k = 0; k < kBlock; ++k) sum += left[r][k] * right[c][k];
    const int64_t row = row0 + r, column = column0 + c;
    if (row < d && column <= row) g[row * d + column] -= sum;
  }
}

// After a try: what succeeded is done, of the others the matrix is as it came, plus the jitter of
// the next try where there is one.
static __global__ void __launch_bounds__(kThreads)
    conclude_kernel(FactorArgs args, FactorState state, int64_t attempt) {
  const int64_t item = blockIdx.x, d = args.d;
  if (state.done[item]) return;
  double* g = args.g + item * d * d;
  const bool failed = state.failed[item] != 0, again = failed && attempt < args.tries;
  const double used = state.jitter[item];
  const double next = attempt == 0 ? args.jitter0 * state.largest[item] : 100.0 * used;
  for (int64_t i = threadIdx.x; i < d * d; i += kThreads) {
    const int64_t row = i / d, column = i % d;
    if (column > row && !failed) g[i] = 0.0;
    if (column < row && failed) g[i] = g[column * d + row];
    if (column == row && failed) g[i] = state.diagonal[item * d + row] + (again ? next : 0.0);
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  if (failed && state.first[item] == 0) state.first[item] = state.failed[item];
  if (!again) {
    args.info[item] = failed ? -state.first[item] : int32_t(attempt);
    args.jitter[item] = failed ? 0.0 : used;
    if (!failed) args.norm[item] += used;
    state.done[item] = 1;
  }
  state.jitter[item] = next;
  state.failed[item] = 0;
}

inline void factor(const FactorArgs& args, const Context& context) {
  const auto stream = cudaStream_t(context.stream);
  const int64_t d = args.d, count = args.count;
  auto* numbers = static_cast<double*>(context.scratch(context.owner, count * (d + 2) * 8));
  auto* flags = static_cast<int32_t*>(context.scratch(context.owner, count * 3 * 4));
  const FactorState state{numbers, numbers + count * d, numbers + count * (d + 1),
                          flags,   flags + count,       flags + 2 * count};
  PYEXT_LAUNCH(prepare_kernel, unsigned(count), kThreads, stream, args, state);
  for (int64_t attempt = 0; attempt <= args.tries; ++attempt) {
    for (int64_t begin = 0; begin < d; begin += kBlock) {
      PYEXT_LAUNCH(diagonal_kernel, unsigned(count), kThreads, stream, args, state, begin);
      const int64_t rest = d - begin - kBlock;
      if (rest <= 0) break;
      const int64_t blocks = blocks_for(rest, kThreads), tiles = blocks_for(rest, kBlock);
      PYEXT_LAUNCH(panel_kernel, unsigned(count * blocks), kThreads, stream, args, state, begin,
                   blocks);
      PYEXT_LAUNCH(trailing_kernel, unsigned(count * tiles * tiles), kThreads, stream, args, state,
                   begin, tiles);
    }
    PYEXT_LAUNCH(conclude_kernel, unsigned(count), kThreads, stream, args, state, attempt);
  }
}

}  // namespace pyext::solve::cuda
