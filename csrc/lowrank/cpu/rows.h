// Edits of rows: a few rows of one editor at a time. Gradients to factors are summed over an
// editor's rows in the order in which they are named, a chunk of columns a task.
#pragma once

#include "core/parallel.h"
#include "lowrank/cpu/dots.h"
#include "lowrank/kernels.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::lowrank;

constexpr int kEditRows = 4;             // of an editor that are edited together
constexpr int64_t kFactorColumns = 512;  // of a gradient to factors that one task sums

template <class S>
int64_t editor_of(const RowsArgs<S>& args, int64_t k) {
  return args.editor ? args.editor[k] : 0;
}

// The edits editor after editor, without those that name no row.
struct Edits {
  int64_t count = 0;
  int64_t *order, *ends;  // which of the K; of each editor the end of its own

  template <class S>
  Edits(const RowsArgs<S>& args, const Context& context) {
    order = static_cast<int64_t*>(
        context.scratch(context.owner, (args.edits + args.editors) * int64_t(sizeof(int64_t))));
    ends = order + args.edits;
    for (int64_t e = 0; e < args.editors; ++e) ends[e] = 0;
    for (int64_t k = 0; k < args.edits; ++k)
      if (args.row[k] >= 0) ++ends[editor_of(args, k)];
    for (int64_t e = 0; e < args.editors; ++e) {  // first where each begins
      const int64_t own = ends[e];
      ends[e] = count;
      count += own;
    }
    for (int64_t k = 0; k < args.edits; ++k)
      if (args.row[k] >= 0) order[ends[editor_of(args, k)]++] = k;
  }
  int64_t begin(int64_t editor) const { return editor ? ends[editor - 1] : 0; }
};

// Calls body(editor, at, rows) for all edits, in groups of a few of one editor: those at `at` in
// their order.
template <class S, class Body>
void for_groups(const RowsArgs<S>& args, const Edits& edits, const Body& body) {
  auto task = [&](int64_t index, int) {
    int64_t at = index * kEditRows;
    const int64_t last = at + kEditRows < edits.count ? at + kEditRows : edits.count;
    while (at < last) {
      const int64_t e = editor_of(args, edits.order[at]);
      const int64_t end = edits.ends[e] < last ? edits.ends[e] : last;
      body(e, at, int(end - at));
      at = end;
    }
  };
  parallel_tasks((edits.count + kEditRows - 1) / kEditRows, task);
}

template <class S>
void edit_group(const RowsArgs<S>& args, const Edits& edits, int64_t e, int64_t at, int count) {
  using T = Wide<S>;
  const int64_t r = args.rank, D = args.width;
  const T *A = args.A + e * r * D, *B = args.B + e * r * D;
  const S* from[kEditRows];
  S* to[kEditRows];
  for (int i = 0; i < count; ++i) {
    const int64_t k = edits.order[at + i];
    from[i] = args.h + args.row[k] * D;
    to[i] = args.out + args.row[k] * D;
    if (args.kept) memcpy(args.kept + k * D, from[i], D * sizeof(S));
  }
  T values[kEditRows][kMaxRank], inside[kEditRows][kMaxRank];
  dots(count, from, A, r, D, values[0], kMaxRank);
  if (args.form != Form::add) dots(count, from, B, r, D, inside[0], kMaxRank);
  for (int i = 0; i < count; ++i) {
    const int64_t k = edits.order[at + i];
    for (int64_t j = 0; j < r; ++j) {
      const T into = args.a ? values[i][j] + args.a[e * r + j] : values[i][j];
      const auto value =
          edit_of(args.form, args.act, into, args.form == Form::add ? T(0) : inside[i][j]);
      if (args.z) args.z[k * r + j] = value.z, args.u[k * r + j] = value.u;
      values[i][j] = args.scale ? args.scale[e] * value.u : value.u;
    }
  }
  const T* spread[kMaxRank];
  list_rows(B, r, D, spread);
  add_products<S>(count, D, to, from, Coefficients<T>{values[0], kMaxRank, 1}, r, spread);
}

template <class S>
void rows(const RowsArgs<S>& args, const Context& context) {
  using T = Wide<S>;
  const Edits edits(args, context);
  for_groups(args, edits,
             [&](int64_t e, int64_t at, int count) { edit_group(args, edits, e, at, count); });
  for (int64_t k = 0; args.kept && k < args.edits; ++k) {
    if (args.row[k] >= 0) continue;
    memset(args.kept + k * args.width, 0, args.width * sizeof(S));
    memset(args.z + k * args.rank, 0, args.rank * sizeof(T));
    memset(args.u + k * args.rank, 0, args.rank * sizeof(T));
  }
}

// Of every edit in its order: gradients to A h + a and to B h, and what B is spread by.
template <class T>
struct EditShares {
  T *values, *scale;  // [count, 3 r]; [count], the products that the gradient to scale sums
  int64_t rank;
  T* into(int64_t at) const { return values + at * 3 * rank; }
  Coefficients<T> of_row(int64_t at) const { return {into(at), 3 * rank, 1}; }
  // Over an editor's edits, those from `at` on.
  Coefficients<T> to_A(int64_t at) const { return {into(at), 1, 3 * rank}; }
  Coefficients<T> to_B_of_h(int64_t at) const { return {into(at) + rank, 1, 3 * rank}; }
  Coefficients<T> to_B_of_g(int64_t at) const { return {into(at) + 2 * rank, 1, 3 * rank}; }
};

template <class S>
void differentiate_group(const RowsBackwardArgs<S>& args, const Edits& edits,
                         const EditShares<Wide<S>>& shares, int64_t e, int64_t at, int count) {
  using T = Wide<S>;
  const RowsArgs<S>& f = args.forward;
  const int64_t r = f.rank, D = f.width;
  const T *A = f.A + e * r * D, *B = f.B + e * r * D;
  const T scale = f.scale ? f.scale[e] : T(1);
  const S* g[kEditRows];
  S* g_h[kEditRows];
  for (int i = 0; i < count; ++i) {
    const int64_t row = f.row[edits.order[at + i]];
    g[i] = args.g + row * D;
    g_h[i] = args.g_h ? args.g_h + row * D : nullptr;
  }
  T products[kEditRows][kMaxRank];
  dots(count, g, B, r, D, products[0], kMaxRank);
  for (int i = 0; i < count; ++i) {
    const int64_t k = edits.order[at + i];
    T *into = shares.into(at + i), *inside = into + r, *spread = inside + r;
    T along = T(0);
    for (int64_t j = 0; j < r; ++j) {
      const T u = f.u[k * r + j];
      const auto g_rank = edit_backward(f.form, f.act, f.z[k * r + j], scale * products[i][j]);
      into[j] = g_rank.into, inside[j] = g_rank.inside, spread[j] = scale * u;
      along += u * products[i][j];
    }
    shares.scale[at + i] = along;
  }
  if (!args.g_h) return;
  const T* factors[2 * kMaxRank];
  list_rows(A, r, D, factors);
  list_rows(B, r, D, factors + r);
  add_products<S>(count, D, g_h, g, shares.of_row(at), f.form == Form::add ? r : 2 * r, factors);
}

// Columns [column, column + width) of an editor's gradients. `pointers` has place for two an edit.
template <class S>
void sum_factors(const RowsBackwardArgs<S>& args, const Edits& edits,
                 const EditShares<Wide<S>>& shares, int64_t e, int64_t column, int64_t width,
                 const S** pointers) {
  using T = Wide<S>;
  const RowsArgs<S>& f = args.forward;
  const int64_t r = f.rank, D = f.width, at = edits.begin(e), count = edits.ends[e] - at;
  const S **h = pointers, **g = pointers + count;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t k = edits.order[at + i];
    h[i] = f.kept + k * D + column;
    g[i] = args.g + f.row[k] * D + column;
  }
  T* out[kMaxRank];
  if (args.g_A) {
    for (int64_t j = 0; j < r; ++j) out[j] = args.g_A + (e * r + j) * D + column;
    add_products<T>(int(r), width, out, nullptr, shares.to_A(at), count, h);
  }
  if (args.g_B) {
    for (int64_t j = 0; j < r; ++j) out[j] = args.g_B + (e * r + j) * D + column;
    add_products<T>(int(r), width, out, nullptr, shares.to_B_of_g(at), count, g);
    if (f.form != Form::add)
      add_products<T>(int(r), width, out, out, shares.to_B_of_h(at), count, h);
  }
}

// An editor's gradients to its bias and its scale.
template <class S>
void sum_ranks(const RowsBackwardArgs<S>& args, const Edits& edits,
               const EditShares<Wide<S>>& shares, int64_t e) {
  using T = Wide<S>;
  const int64_t r = args.forward.rank;
  T along = T(0);
  for (int64_t j = 0; args.g_a && j < r; ++j) args.g_a[e * r + j] = T(0);
  for (int64_t at = edits.begin(e); at < edits.ends[e]; ++at) {
    for (int64_t j = 0; args.g_a && j < r; ++j) args.g_a[e * r + j] += shares.into(at)[j];
    along += shares.scale[at];
  }
  if (args.g_scale) args.g_scale[e] = along;
}

template <class S>
void rows_backward(const RowsBackwardArgs<S>& args, const Context& context) {
  using T = Wide<S>;
  const RowsArgs<S>& f = args.forward;
  const Edits edits(f, context);
  auto* memory = static_cast<T*>(
      context.scratch(context.owner, edits.count * (3 * f.rank + 1) * int64_t(sizeof(T))));
  const EditShares<T> shares{memory, memory + edits.count * 3 * f.rank, f.rank};
  for_groups(f, edits, [&](int64_t e, int64_t at, int count) {
    differentiate_group(args, edits, shares, e, at, count);
  });
  for (int64_t e = 0; e < f.editors; ++e) sum_ranks(args, edits, shares, e);
  if (!args.g_A && !args.g_B) return;
  const int64_t chunks = (f.width + kFactorColumns - 1) / kFactorColumns;
  const int64_t own = 2 * edits.count;
  auto** pointers = static_cast<const S**>(
      context.scratch(context.owner, thread_count() * own * int64_t(sizeof(S*))));
  auto task = [&](int64_t index, int worker) {
    const int64_t column = index % chunks * kFactorColumns, left = f.width - column;
    sum_factors(args, edits, shares, index / chunks, column,
                left < kFactorColumns ? left : kFactorColumns, pointers + worker * own);
  };
  parallel_tasks(f.editors * chunks, task);
}

}  // namespace pyext::PYEXT_ISA
