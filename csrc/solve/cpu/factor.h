// Cholesky decompositions: blocked, right-looking, the trailing update in register tiles. Many
// matrices are shared out among the threads; of few, each is factored by all of them, with the same
// bits.
#pragma once

#include <cmath>

#include "solve/cpu/tiles.h"
#include "solve/kernels.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::solve;

constexpr int64_t kMostBlock = 128;

// Columns that are factored before the rest is updated: wide blocks read a large rest less often.
inline int64_t block_of(int64_t d) { return d < 1024 ? 64 : kMostBlock; }

// The factor of a diagonal block, by its upper triangle u [n][kMostBlock], whose rows are
// contiguous. Returns 0, or the number of the pivot that failed, from 1.
inline int64_t factor_block(double (*u)[kMostBlock], int64_t n) {
  for (int64_t k = 0; k < n; ++k) {
    const double pivot = u[k][k];
    if (!(pivot > 0)) return k + 1;
    const double root = std::sqrt(pivot), inverse = 1 / root;
    u[k][k] = root;
    for (int64_t i = k + 1; i < n; ++i) u[k][i] *= inverse;
    for (int64_t j = k + 1; j < n; ++j) {
      const double by = u[k][j];
      for (int64_t i = j; i < n; ++i) u[j][i] -= by * u[k][i];
    }
  }
  return 0;
}

// Sixteen rows below a diagonal block, as columns [n][16] of a panel: x = x U^-1.
inline void solve_rows(const double (*u)[kMostBlock], int64_t n, double* panel) {
  for (int64_t begin = 0; begin < n; begin += kTall) {
    const int count = n - begin < kTall ? int(n - begin) : kTall;
    D sums[kTall];
    PYEXT_UNROLL
    for (int i = 0; i < kTall; ++i) sums[i] = D(0.0);
    multiply(begin, &u[0][begin], 1, kMostBlock, panel, sums);
    for (int i = 0; i < count; ++i) {
      D x = D::load(panel + (begin + i) * kLanes) - sums[i];
      for (int k = 0; k < i; ++k)
        x = fnma(D(u[begin + k][begin + i]), D::load(panel + (begin + k) * kLanes), x);
      (x * D(1 / u[begin + i][begin + i])).store(panel + (begin + i) * kLanes);
    }
  }
}

// What one decomposition works in.
struct FactorScratch {
  double (*u)[kMostBlock];
  double* panels;
  static int64_t values(int64_t d) {
    return kMostBlock * kMostBlock + panels_of(d) * kLanes * kMostBlock;
  }
  explicit FactorScratch(double* memory)
      : u(reinterpret_cast<double (*)[kMostBlock]>(memory)),
        panels(memory + kMostBlock * kMostBlock) {}
};

// The factor in place of the lower triangle; returns 0, or the pivot that failed.
inline int64_t factor_lower(double* g, int64_t d, const FactorScratch& scratch, bool parallel) {
  const int64_t block = block_of(d);
  for (int64_t begin = 0; begin < d; begin += block) {
    const int64_t n = d - begin < block ? d - begin : block, next = begin + n, rest = d - next;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j <= i; ++j) scratch.u[j][i] = g[(begin + i) * d + begin + j];
    for (int64_t k = 0; k < n; ++k)  // what a tile of the block reads beyond its last column
      for (int64_t i = n; i < n + kTall && i < kMostBlock; ++i) scratch.u[k][i] = 0.0;
    const int64_t failed = factor_block(scratch.u, n);
    if (failed) return begin + failed;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j <= i; ++j) g[(begin + i) * d + begin + j] = scratch.u[j][i];
    if (rest == 0) break;
    const int64_t step = n * kLanes;
    for_tasks(parallel, panels_of(rest), [&](int64_t p, int) {
      double* panel = scratch.panels + p * step;
      const int64_t count = rest - p * kLanes < kLanes ? rest - p * kLanes : kLanes;
      double* rows = g + (next + p * kLanes) * d + begin;
      for (int64_t k = 0; k < n; ++k)
        for (int64_t i = 0; i < kLanes; ++i)
          panel[k * kLanes + i] = i < count ? rows[i * d + k] : 0.0;
      solve_rows(scratch.u, n, panel);
      for (int64_t i = 0; i < count; ++i)
        for (int64_t k = 0; k < n; ++k) rows[i * d + k] = panel[k * kLanes + i];
    });
    const Sums trailing{g + next * d + next, d, rest, rest, true};
    const Tiles tiles(trailing);
    for_tasks(parallel, tiles.count(), [&](int64_t task, int) {
      int64_t row, column;
      tiles.at(task, row, column);
      add_tile<true>(trailing, row * kTile, column * kTile, scratch.panels, scratch.panels, step,
                     n);
    });
  }
  return 0;
}

// The lower triangle mirrored above the diagonal, where it outlives a failed try.
inline void mirror(double* g, int64_t d, bool to_upper) {
  constexpr int64_t kSide = 32;  // both sides of a square stay in cache
  for (int64_t row = 0; row < d; row += kSide)
    for (int64_t column = 0; column <= row; column += kSide)
      for (int64_t i = row; i < row + kSide && i < d; ++i)
        for (int64_t j = column; j < column + kSide && j < i; ++j)
          (to_upper ? g[j * d + i] : g[i * d + j]) = to_upper ? g[i * d + j] : g[j * d + i];
}

inline void factor_one(const FactorArgs& args, int64_t item, double* memory, bool parallel) {
  const int64_t d = args.d;
  double* g = args.g + item * d * d;
  double* diagonal = memory + FactorScratch::values(d);
  mirror(g, d, true);
  double largest = 0.0, norm = 0.0, all = 0.0;
  for (int64_t i = 0; i < d; ++i) {
    double sum = 0.0;
    for (int64_t j = 0; j < d; ++j) sum += std::fabs(g[i * d + j]);
    diagonal[i] = g[i * d + i];
    all += sum;
    norm = sum > norm ? sum : norm;
    largest = std::fabs(diagonal[i]) > largest ? std::fabs(diagonal[i]) : largest;
  }
  args.info[item] = kNotFinite;
  args.jitter[item] = 0.0;
  args.norm[item] = norm;
  if (!std::isfinite(all)) return;
  int64_t first = 0;
  double jitter = 0.0;
  for (int64_t attempt = 0; attempt <= args.tries; ++attempt) {
    const int64_t failed = factor_lower(g, d, FactorScratch(memory), parallel);
    if (failed == 0) {
      for (int64_t i = 0; i < d; ++i)
        for (int64_t j = i + 1; j < d; ++j) g[i * d + j] = 0.0;
      args.info[item] = int32_t(attempt);
      args.jitter[item] = jitter;
      args.norm[item] = norm + jitter;
      return;
    }
    first = first ? first : failed;
    mirror(g, d, false);
    jitter = attempt == 0 ? args.jitter0 * largest : 100 * jitter;
    const bool again = attempt < args.tries;
    for (int64_t i = 0; i < d; ++i) g[i * d + i] = diagonal[i] + (again ? jitter : 0.0);
  }
  args.info[item] = int32_t(-first);
}

inline void factor(const FactorArgs& args, const Context& context) {
  const int64_t values = FactorScratch::values(args.d) + args.d;
  const int workers = thread_count();
  const bool shared_out = args.count >= 2 * workers;
  auto* memory =
      static_cast<double*>(context.scratch(context.owner, (shared_out ? workers : 1) * values * 8));
  for_tasks(shared_out, args.count, [&](int64_t item, int worker) {
    factor_one(args, item, memory + worker * values, !shared_out);
  });
}

}  // namespace pyext::PYEXT_ISA
