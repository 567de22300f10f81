// Torch ops: low-rank edits of rows, in place or of a copy, and the gradients.
#include <algorithm>
#include <array>

#include "lowrank/bind/bind.h"

namespace pyext::lowrank {
namespace {

Form form_of(c10::string_view name) {
  if (name == "add") return Form::add;
  if (name == "reft") return Form::reft;
  if (name == "mrt") return Form::mrt;
  TORCH_CHECK_VALUE(false, "form: expected add, reft or mrt, got ", name);
}

void check_range(const Tensor& values, const char* name, const char* what, int64_t least,
                 int64_t end) {
  const auto* x = data<int64_t>(values);
  for (int64_t i = 0; i < values.numel(); ++i)
    TORCH_CHECK_VALUE(x[i] >= least && x[i] < end, name, ": expected ", what, " from ", least,
                      " to below ", end, ", got ", x[i], " at ", i);
}

// A row that is named twice; the first of them if there are more. -1 if there is none.
int64_t repeated(const Tensor& rows, int64_t count) {
  const auto* x = data<int64_t>(rows);
  const int64_t edits = rows.numel();
  if (std::adjacent_find(x, x + edits, std::greater_equal<>()) == x + edits) return -1;
  std::vector<bool> seen(count);
  int64_t first = count;
  for (int64_t i = 0; i < edits; ++i) {
    if (x[i] < 0) continue;
    if (seen[x[i]]) first = std::min(first, x[i]);
    seen[x[i]] = true;
  }
  return first < count ? first : -1;
}

// The arguments that forward and backward share, checked, contiguous and wide.
struct Editing {
  int64_t N, K, E, r, D;
  Activation act;
  Form form;
  Tensor A, B, a, rows, group, scale;

  // `h`: the states, or a gradient like them.
  Editing(const Tensor& h, const Tensor& A_, const Tensor& B_, const OptionalTensor& a_,
          const Tensor& rows_, const OptionalTensor& group_, const OptionalTensor& scale_,
          c10::string_view act_, c10::string_view form_)
      : act(activation_of(act_)), form(form_of(form_)) {
    TORCH_CHECK_VALUE(h.dim() >= 1 && A_.dim() == 3 && A_.size(2) == h.size(-1), "h is ", h.sizes(),
                      " and A is ", A_.sizes(), ", expected [..., D] and [E, r, D]");
    E = A_.size(0), r = A_.size(1), D = A_.size(2), K = rows_.numel();
    TORCH_CHECK_VALUE(r >= 1 && r <= kMaxRank, "A: expected a rank from 1 to ", kMaxRank, ", got ",
                      r);
    N = D ? h.numel() / D : 0;
    A = dense_wide(A_, "A", h, "h", {E, r, D});
    B = dense_wide(B_, "B", h, "h", {E, r, D});
    a = dense_wide(a_, "a", h, "h", {E, r});
    rows = integers(rows_, "rows", K, h, "h");
    if (group_) group = integers(*group_, "group", K, h, "h");
    scale = dense_typed(scale_, "scale", wide_type(h), h, "h", {E});
    TORCH_CHECK_VALUE(group.defined() || E == 1, "group: expected the editor of every row, as ",
                      "there are ", E);
    check_indices();
  }

  // On a CUDA device the kernels skip wrong ones: to look at them is to wait for the device.
  void check_indices() const {
    if (!rows.is_cpu()) return;
    check_range(rows, "rows", "rows", -1, N);
    if (group.defined()) check_range(group, "group", "editors", 0, E);
    const int64_t row = repeated(rows, N);
    TORCH_CHECK_VALUE(row < 0, "rows: two editors address the same position, row ", row);
  }

  bool empty() const { return K == 0 || N == 0; }

  template <class S>
  RowsArgs<S> args(const Tensor& h, const Tensor& out, const Tensor& kept, const Tensor& z,
                   const Tensor& u) const {
    return {N,
            K,
            E,
            r,
            D,
            act,
            form,
            pointer<S>(h),
            pointer<Wide<S>>(A),
            pointer<Wide<S>>(B),
            pointer<Wide<S>>(a),
            data<int64_t>(rows),
            data<int64_t>(group),
            pointer<Wide<S>>(scale),
            pointer<S>(out),
            pointer<S>(kept),
            pointer<Wide<S>>(z),
            pointer<Wide<S>>(u)};
  }
};

using Saved = std::tuple<Tensor, Tensor, Tensor>;

// Edits rows of h, contiguous, to out, a copy of it or h itself; returns what the backward needs if
// `save`, else empty tensors.
Saved edit(const Editing& in, const Tensor& h, const Tensor& out, bool save) {
  const int64_t kept_rows = save ? in.K : 0;
  const auto wide = h.options().dtype(wide_type(h));
  Tensor kept = at::empty({kept_rows, in.D}, h.options());
  Tensor z = at::empty({kept_rows, in.r}, wide), u = at::empty({kept_rows, in.r}, wide);
  Scratch scratch(h);
  dispatch_storage(h, "h", [&](auto zero) {
    using S = decltype(zero);
    if (in.empty()) return;
    kernels_for<S>(h).rows(in.args<S>(h, out, kept, z, u), context_for(h, scratch));
  });
  return {kept, z, u};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> lowrank_rows(
    const Tensor& h_, const Tensor& A, const Tensor& B, const OptionalTensor& a, const Tensor& rows,
    const OptionalTensor& group, const OptionalTensor& scale, c10::string_view act,
    c10::string_view form, bool save) {
  const Tensor h = h_.contiguous();
  const Editing in(h, A, B, a, rows, group, scale, act, form);
  Tensor out = empty(h.sizes(), h.options());
  out.copy_(h);
  const auto [kept, z, u] = edit(in, h, out, save);
  return {out, kept, z, u};
}

Saved lowrank_rows_(const Tensor& h, const Tensor& A, const Tensor& B, const OptionalTensor& a,
                    const Tensor& rows, const OptionalTensor& group, const OptionalTensor& scale,
                    c10::string_view act, c10::string_view form, bool save) {
  TORCH_CHECK_VALUE(h.is_contiguous(), "h: expected a contiguous tensor to write in place");
  const Editing in(h, A, B, a, rows, group, scale, act, form);
  Saved saved = edit(in, h, h, save);
  mark_written(h);
  return saved;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients lowrank_rows_backward(const Tensor& g_, const Tensor& kept_, const Tensor& z_,
                                const Tensor& u_, const Tensor& A, const Tensor& B,
                                const OptionalTensor& a, const Tensor& rows,
                                const OptionalTensor& group, const OptionalTensor& scale,
                                c10::string_view act, c10::string_view form,
                                std::array<bool, 5> need) {
  const Tensor g = g_.contiguous();
  const Editing in(g, A, B, a, rows, group, scale, act, form);
  const auto wide = g.options().dtype(wide_type(g));
  const Tensor kept = dense(kept_, "kept", g, "g", {in.K, in.D});
  const Tensor z = dense_typed(z_, "z", wide_type(g), g, "g", {in.K, in.r});
  const Tensor u = dense_typed(u_, "u", wide_type(g), g, "g", {in.K, in.r});
  const auto where = [&](bool needed, const Tensor& like, const at::TensorOptions& options) {
    if (!needed || !like.defined()) return at::empty({0}, options);
    return in.empty() ? at::zeros(like.sizes(), options) : empty(like.sizes(), options);
  };
  Tensor g_h = need[0] ? empty(g.sizes(), g.options()) : at::empty({0}, g.options());
  if (need[0]) g_h.copy_(g);
  Tensor g_A = where(need[1], in.A, wide), g_B = where(need[2], in.B, wide);
  Tensor g_a = where(need[3], in.a, wide), g_scale = where(need[4], in.scale, wide);
  Scratch scratch(g);
  dispatch_storage(g, "g", [&](auto zero) {
    using S = decltype(zero);
    if (in.empty()) return;
    const RowsBackwardArgs<S> args{
        in.args<S>({}, {}, kept, z, u), pointer<S>(g),         pointer<S>(g_h),
        pointer<Wide<S>>(g_A),          pointer<Wide<S>>(g_B), pointer<Wide<S>>(g_a),
        pointer<Wide<S>>(g_scale)};
    kernels_for<S>(g).rows_backward(args, context_for(g, scratch));
  });
  return {g_h, g_A.to(A.scalar_type()), g_B.to(B.scalar_type()), a ? g_a.to(a->scalar_type()) : g_a,
          g_scale};
}

void define(torch::Library& m) {
  m.def(
      "lowrank_rows(Tensor h, Tensor A, Tensor B, Tensor? a, Tensor rows, Tensor? group, "
      "Tensor? scale, str act, str form, bool save) -> (Tensor out, Tensor kept, Tensor z, "
      "Tensor u)");
  m.def(
      "lowrank_rows_(Tensor(a!) h, Tensor A, Tensor B, Tensor? a, Tensor rows, Tensor? group, "
      "Tensor? scale, str act, str form, bool save) -> (Tensor kept, Tensor z, Tensor u)");
  m.def(
      "lowrank_rows_backward(Tensor g, Tensor kept, Tensor z, Tensor u, Tensor A, Tensor B, "
      "Tensor? a, Tensor rows, Tensor? group, Tensor? scale, str act, str form, bool[5] need) "
      "-> (Tensor g_h, Tensor g_A, Tensor g_B, Tensor g_a, Tensor g_scale)");
}

void implement(torch::Library& m) {
  m.impl("lowrank_rows", &lowrank_rows);
  m.impl("lowrank_rows_", &lowrank_rows_);
  m.impl("lowrank_rows_backward", &lowrank_rows_backward);
}

}  // namespace

PYEXT_OPS(define, implement)

}  // namespace pyext::lowrank
