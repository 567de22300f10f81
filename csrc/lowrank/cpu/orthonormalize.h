// Orthonormal rows: Gram-Schmidt with sums in double, each row twice, which makes it orthogonal to
// those before, as they are stored, whatever the condition of the matrix. One task a matrix.
#pragma once

#include <cmath>
#include <limits>

#include "core/parallel.h"
#include "core/simd_double.h"
#include "lowrank/kernels.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::lowrank;

constexpr int kProducts = 4;  // of a row with others, in one pass over it

// out[j] = x . rows_j for j < count; the rows are without gaps.
template <int Count, class X, class S>
PYEXT_INLINE void row_products(const X* x, const S* rows, int64_t width, double* out) {
  Lanes<double> sums[Count];
  PYEXT_UNROLL
  for (int j = 0; j < Count; ++j) sums[j] = Lanes<double>(0.0);
  for_each_lanes(width, [&](int64_t i, auto lanes) {
    const Lanes<double> own = load_double(x + i, lanes);
    PYEXT_UNROLL
    for (int j = 0; j < Count; ++j)
      sums[j] = fma(own, load_double(rows + j * width + i, lanes), sums[j]);
  });
  for (int j = 0; j < Count; ++j) out[j] = sums[j].sum();
}
template <class X, class S>
void products_with_rows(const X* x, const S* rows, int64_t count, int64_t width, double* out) {
  int64_t j = 0;
  for (; j + kProducts <= count; j += kProducts)
    row_products<kProducts>(x, rows + j * width, width, out + j);
  for (; j < count; ++j) row_products<1>(x, rows + j * width, width, out + j);
}

// row -= sum over j of share[j] rows_j, 16 Count values from `at` on: of as many at once as hide
// how long a sum takes.
template <int Count, class S, class LanesOf>
PYEXT_INLINE void subtract_rows(double* row, const S* rows, const double* share, int64_t count,
                                int64_t width, int64_t at, LanesOf lanes) {
  Lanes<double> left[Count];
  PYEXT_UNROLL
  for (int k = 0; k < Count; ++k) left[k] = load_wide(row + at + k * kLanes, lanes);
  for (int64_t j = 0; j < count; ++j) {
    const Lanes<double> by(-share[j]);
    PYEXT_UNROLL
    for (int k = 0; k < Count; ++k)
      left[k] = fma(by, load_double(rows + j * width + at + k * kLanes, lanes), left[k]);
  }
  PYEXT_UNROLL
  for (int k = 0; k < Count; ++k) store_narrow<double>(left[k], row + at + k * kLanes, lanes);
}

// Takes from a row its share of `count` orthonormal rows, and adds that share to `shares`.
template <class S>
void project_out(double* row, const S* rows, int64_t count, int64_t width, double* shares) {
  double share[kMaxRank];
  products_with_rows(row, rows, count, width, share);
  for (int64_t j = 0; j < count; ++j) shares[j] += share[j];
  int64_t at = 0;
  for (; at + kProducts * kLanes <= width; at += kProducts * kLanes)
    subtract_rows<kProducts>(row, rows, share, count, width, at, AllLanes());
  for (; at < width; at += kLanes)
    subtract_rows<1>(row, rows, share, count, width, at,
                     FirstLanes(int(width - at < kLanes ? width - at : kLanes)));
}

// Stores values in double as S.
template <class S, class Count>
PYEXT_INLINE void store_double(Lanes<double> a, S* p, Count lanes) {
  double x[kLanes];
  a.store(x);
  for (int i = 0; i < int(lanes); ++i) p[i] = S(x[i]);
}

// False where the rows of x are dependent or not finite. `row` has place for one.
template <class S>
bool decompose(const OrthonormalizeArgs<S>& args, const S* x, double* row, S* r, S* l) {
  const int64_t rank = args.rank, width = args.width;
  double square;
  row_products<1>(x, x, rank * width, &square);
  const double least = args.least * std::sqrt(square);
  for (int64_t i = 0; i < rank; ++i) {
    for_each_lanes(width, [&](int64_t c, auto lanes) {
      store_narrow<double>(load_double(x + i * width + c, lanes), row + c, lanes);
    });
    double shares[kMaxRank] = {};
    project_out(row, r, i, width, shares);
    project_out(row, r, i, width, shares);
    row_products<1>(row, row, width, &square);
    const double length = std::sqrt(square);
    if (!(length > least)) return false;
    const Lanes<double> inverse(1.0 / length);
    for_each_lanes(width, [&](int64_t c, auto lanes) {
      store_double(inverse * load_wide(row + c, lanes), r + i * width + c, lanes);
    });
    shares[i] = length;
    for (int64_t j = 0; j < rank; ++j) l[i * rank + j] = S(shares[j]);
  }
  return true;
}

template <class S>
void orthonormalize(const OrthonormalizeArgs<S>& args, const Context& context) {
  if constexpr (sizeof(S) > 2) {
    const int64_t values = args.rank * args.width, square = args.rank * args.rank;
    auto* rows = static_cast<double*>(
        context.scratch(context.owner, thread_count() * args.width * int64_t(sizeof(double))));
    auto task = [&](int64_t e, int worker) {
      S *r = args.r + e * values, *l = args.l + e * square;
      if (decompose(args, args.x + e * values, rows + worker * args.width, r, l)) return;
      for (int64_t i = 0; i < values; ++i) r[i] = std::numeric_limits<S>::quiet_NaN();
      for (int64_t i = 0; i < square; ++i) l[i] = std::numeric_limits<S>::quiet_NaN();
    };
    parallel_tasks(args.count, task);
  }
}

// What the gradient to x is made of: g_x = by_g g + by_r r.
struct Shares {
  double *by_g, *by_r;  // [rank, rank]; by_g is upper triangular
};

// With C the symmetric matrix whose lower triangle is that of -g r^T, the gradient is
// l^-T (g + C r): that of a QR decomposition with a positive diagonal, transposed.
template <class S>
void find_shares(const S* g, const S* r, const S* l, int64_t rank, int64_t width, double* symmetric,
                 const Shares& shares) {
  for (int64_t i = 0; i < rank; ++i) {
    double products[kMaxRank];
    products_with_rows(g + i * width, r, i + 1, width, products);
    for (int64_t j = 0; j <= i; ++j)
      symmetric[i * rank + j] = symmetric[j * rank + i] = -products[j];
  }
  for (int64_t j = 0; j < rank; ++j)  // column j of l^-T is row j of l^-1
    for (int64_t i = rank - 1; i >= 0; --i) {
      double left = i == j;
      for (int64_t k = i + 1; k <= j; ++k)
        left -= double(l[k * rank + i]) * shares.by_g[k * rank + j];
      shares.by_g[i * rank + j] = i > j ? 0.0 : left / double(l[i * rank + i]);
    }
  for (int64_t i = 0; i < rank; ++i)
    for (int64_t j = 0; j < rank; ++j) {
      double sum = 0.0;
      for (int64_t k = i; k < rank; ++k) sum += shares.by_g[i * rank + k] * symmetric[k * rank + j];
      shares.by_r[i * rank + j] = sum;
    }
}

// Rows [first, first + Count) of g_x.
template <int Count, class S>
PYEXT_INLINE void combine_rows(const S* g, const S* r, int64_t rank, int64_t width, int64_t first,
                               const Shares& shares, S* g_x) {
  for_each_lanes(width, [&](int64_t c, auto lanes) {
    Lanes<double> sums[Count];
    PYEXT_UNROLL
    for (int i = 0; i < Count; ++i) sums[i] = Lanes<double>(0.0);
    const auto add = [&](const S* rows, const double* by, int64_t j) {
      const auto row = load_double(rows + j * width + c, lanes);
      PYEXT_UNROLL
      for (int i = 0; i < Count; ++i)
        sums[i] = fma(Lanes<double>(by[(first + i) * rank + j]), row, sums[i]);
    };
    for (int64_t j = first; j < rank; ++j) add(g, shares.by_g, j);
    for (int64_t j = 0; j < rank; ++j) add(r, shares.by_r, j);
    PYEXT_UNROLL
    for (int i = 0; i < Count; ++i) store_double(sums[i], g_x + (first + i) * width + c, lanes);
  });
}

template <class S>
void orthonormalize_backward(const OrthonormalizeBackwardArgs<S>& args, const Context& context) {
  if constexpr (sizeof(S) > 2) {
    const int64_t rank = args.rank, width = args.width, square = rank * rank;
    auto* work = static_cast<double*>(
        context.scratch(context.owner, thread_count() * 3 * square * int64_t(sizeof(double))));
    auto task = [&](int64_t e, int worker) {
      double* own = work + worker * 3 * square;
      const Shares shares{own + square, own + 2 * square};
      const S *g = args.g + e * rank * width, *r = args.r + e * rank * width;
      S* g_x = args.g_x + e * rank * width;
      find_shares(g, r, args.l + e * square, rank, width, own, shares);
      int64_t i = 0;
      for (; i + kProducts <= rank; i += kProducts)
        combine_rows<kProducts>(g, r, rank, width, i, shares, g_x);
      for (; i < rank; ++i) combine_rows<1>(g, r, rank, width, i, shares, g_x);
    };
    parallel_tasks(args.count, task);
  }
}

}  // namespace pyext::PYEXT_ISA
