// What is done to rows one by one: projections, and sums of squares.
#pragma once

#include "solve/cpu/gram.h"

namespace pyext::PYEXT_ISA {

constexpr int64_t kRowBlock = 64;   // rows of a task
constexpr int64_t kColumns = 1024;  // of rows that are widened at once
constexpr int kRowsAtOnce = 4, kOutputsAtOnce = 2;

// Products of widened rows [4][kColumns] with two rows of a, over `width` columns.
PYEXT_INLINE void add_products(const double (*x)[kColumns], const double* const* a, int64_t width,
                               double (&sums)[kRowsAtOnce][kOutputsAtOnce]) {
  D lanes[kRowsAtOnce][kOutputsAtOnce];
  PYEXT_UNROLL
  for (int i = 0; i < kRowsAtOnce; ++i) PYEXT_UNROLL
  for (int j = 0; j < kOutputsAtOnce; ++j) lanes[i][j] = D(0.0);
  for_each_lanes(width, [&](int64_t c, auto count) {
    D values[kOutputsAtOnce];
    PYEXT_UNROLL
    for (int j = 0; j < kOutputsAtOnce; ++j) values[j] = load_wide(a[j] + c, count);
    PYEXT_UNROLL
    for (int i = 0; i < kRowsAtOnce; ++i) PYEXT_UNROLL
    for (int j = 0; j < kOutputsAtOnce; ++j)
      lanes[i][j] = fma(D::load(x[i] + c), values[j], lanes[i][j]);
  });
  PYEXT_UNROLL
  for (int i = 0; i < kRowsAtOnce; ++i) PYEXT_UNROLL
  for (int j = 0; j < kOutputsAtOnce; ++j) sums[i][j] = lanes[i][j].sum();
}

// Columns [begin, begin + width) of a row in double, zeros up to the next sixteen.
template <class S>
PYEXT_INLINE void widen_row(const S* row, int64_t width, bool counts, double* out) {
  for_each_lanes(width, [&](int64_t c, auto lanes) {
    (counts ? load_as<double>(row + c, lanes) : D(0.0)).store(out + c);
  });
}

template <class S>
inline void project_rows(const ProjectArgs& args, int64_t first, int64_t count, double* sums) {
  const int64_t d = args.x.width, outputs = args.outputs;
  double x[kRowsAtOnce][kColumns];
  for (int64_t i = 0; i < kRowsAtOnce * outputs; ++i) sums[i] = 0.0;
  for (int64_t begin = 0; begin < d; begin += kColumns) {
    const int64_t width = d - begin < kColumns ? d - begin : kColumns;
    for (int64_t i = 0; i < kRowsAtOnce; ++i) {
      const int64_t row = first + (i < count ? i : 0);
      widen_row(row_of<S>(args.x, row) + begin, width, weight_of(args.weight, row) > 0, x[i]);
    }
    for (int64_t r = 0; r < outputs; r += kOutputsAtOnce) {
      const int64_t second = r + 1 < outputs ? r + 1 : r;
      const double* a[] = {args.a + r * d + begin, args.a + second * d + begin};
      double found[kRowsAtOnce][kOutputsAtOnce];
      add_products(x, a, width, found);
      for (int i = 0; i < kRowsAtOnce; ++i) {
        sums[i * outputs + r] += found[i][0];
        if (second > r) sums[i * outputs + second] += found[i][1];
      }
    }
  }
  for (int64_t i = 0; i < count * outputs; ++i) {
    if (args.h) args.h[first * outputs + i] = float(sums[i]);
    if (args.h_wide) args.h_wide[first * outputs + i] = sums[i];
  }
}

inline void project(const ProjectArgs& args, const Context& context) {
  const int64_t blocks = (args.x.count + kRowBlock - 1) / kRowBlock;
  const int64_t values = kRowsAtOnce * args.outputs;
  auto* memory = static_cast<double*>(context.scratch(context.owner, thread_count() * values * 8));
  for_tasks(true, blocks, [&](int64_t block, int worker) {
    const int64_t end =
        (block + 1) * kRowBlock < args.x.count ? (block + 1) * kRowBlock : args.x.count;
    for (int64_t row = block * kRowBlock; row < end; row += kRowsAtOnce)
      for_storage(args.x.type, [&](auto zero) {
        project_rows<decltype(zero)>(args, row, end - row < kRowsAtOnce ? end - row : kRowsAtOnce,
                                     memory + worker * values);
      });
  });
}

// weight times the sum of squares of a row.
template <class S>
inline double row_square(const SumsqArgs& args, int64_t row) {
  const double weight = weight_of(args.segments.weight, row);
  if (weight == 0) return 0.0;
  const S* y = row_of<S>(args.y, row);
  D sum(0.0);
  for_each_lanes(args.y.width, [&](int64_t c, auto lanes) {
    D x = load_as<double>(y + c, lanes);
    if (args.bias) x = x - load_wide(args.bias + c, lanes);
    sum = fma(x, x, sum);
  });
  return weight * sum.sum();
}

inline void sumsq(const SumsqArgs& args, const Context& context) {
  const int64_t rows = args.y.count, blocks = (rows + kRowBlock - 1) / kRowBlock;
  auto* squares = static_cast<double*>(context.scratch(context.owner, rows * 8));
  for_tasks(true, blocks, [&](int64_t block, int) {
    const int64_t end = (block + 1) * kRowBlock < rows ? (block + 1) * kRowBlock : rows;
    for (int64_t row = block * kRowBlock; row < end; ++row)
      for_storage(args.y.type,
                  [&](auto zero) { squares[row] = row_square<decltype(zero)>(args, row); });
  });
  for (int64_t s = 0; s < args.segments.count; ++s) {
    double sum = 0.0;
    for (int64_t row = first_row(args.segments, s); row < last_row(args.segments, s, rows); ++row)
      sum += squares[row];
    args.out[s] += sum;
  }
}

}  // namespace pyext::PYEXT_ISA
