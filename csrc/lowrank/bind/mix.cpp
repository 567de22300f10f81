// Torch ops: gated sums of low-rank adapters, and their gradients.
#include "lowrank/bind/bind.h"

namespace pyext::lowrank {
namespace {

using Flags = c10::List<bool>;

Adapters adapters_of(int64_t count, int64_t rank, const Flags& inner, at::IntArrayRef ranks,
                     const Flags& frozen) {
  TORCH_CHECK_VALUE(count <= kMostAdapters, "A: expected at most ", kMostAdapters,
                    " adapters, got ", count);
  const auto check_count = [&](size_t size, const char* name) {
    TORCH_CHECK_VALUE(int64_t(size) == count, name, ": expected ", count,
                      " values, one an adapter, got ", size);
  };
  check_count(inner.size(), "has_inner");
  check_count(ranks.size(), "ranks");
  check_count(frozen.size(), "frozen");
  Adapters adapters{int32_t(count), int32_t(rank), {}, {}, {}};
  for (int64_t e = 0; e < count; ++e) {
    TORCH_CHECK_VALUE(ranks[size_t(e)] >= 0 && ranks[size_t(e)] <= rank, "ranks: expected 0 to ",
                      rank, ", got ", ranks[size_t(e)], " for adapter ", e);
    adapters.first[e + 1] = adapters.first[e] + int32_t(ranks[size_t(e)]);
    adapters.inner[e] = inner[size_t(e)];
    adapters.frozen[e] = frozen[size_t(e)];
  }
  return adapters;
}

// The inputs, checked and contiguous.
struct Mixture {
  int64_t N, Din, Do, E, r;
  Adapters adapters;
  Activation act;
  Tensor x, A, B, c, M, m, scale, gate;
  bool stored_A, stored_B;

  Mixture(const Tensor& x_, const Tensor& A_, const Tensor& B_, const OptionalTensor& c_,
          const OptionalTensor& M_, const OptionalTensor& m_, const OptionalTensor& scale_,
          const OptionalTensor& gate_, const Flags& inner, at::IntArrayRef ranks,
          const Flags& frozen, c10::string_view act_)
      : act(activation_of(act_)) {
    check_shape(x_, "x", {-1, -1});
    x = x_.contiguous();
    N = x.size(0), Din = x.size(1);
    std::tie(E, r) = rank_of(A_, "A", Din);
    A = dense_wide(A_, "A", x, "x", {E, r, Din});
    B = dense_wide(B_, "B", x, "x", {E, r, -1});
    Do = B.size(2);
    c = dense_wide(c_, "c", x, "x", {E, Do});
    M = dense_wide(M_, "M", x, "x", {E, r, r});
    m = dense_wide(m_, "m", x, "x", {E, r});
    const auto stored = [&](const Tensor& factor) {
      return factor.scalar_type() == x.scalar_type();
    };
    stored_A = stored(A_), stored_B = stored(B_) && (!c_ || stored(*c_));
    scale = dense_typed(scale_, "scale", wide_type(x), x, "x", {E});
    gate = dense_typed(gate_, "gate", wide_type(x), x, "x", {N, E});
    adapters = adapters_of(E, r, inner, ranks, frozen);
    for (int64_t e = 0; e < E; ++e)
      TORCH_CHECK_VALUE(!adapters.inner[e] || M.defined(),
                        "M: expected inner maps, as has_inner asks for one, got None");
  }

  template <class S>
  MixArgs<S> args(const Tensor& a, const Tensor& base, const Tensor& y, const Tensor& u) const {
    using T = Wide<S>;
    return {N,
            Din,
            Do,
            adapters,
            act,
            pointer<S>(x),
            pointer<S>(base),
            pointer<T>(A),
            pointer<T>(B),
            stored_A,
            stored_B,
            pointer<T>(a),
            pointer<T>(c),
            pointer<T>(M),
            pointer<T>(m),
            pointer<T>(scale),
            pointer<T>(gate),
            pointer<S>(y),
            pointer<T>(u)};
  }
};

// Fills y, which may be base; returns u.
Tensor mix_to(const Mixture& in, const OptionalTensor& a_, const Tensor& base, const Tensor& y) {
  const Tensor a = dense_wide(a_, "a", in.x, "x", {in.E, in.r});
  Tensor u = empty({in.N, in.adapters.columns()}, in.x.options().dtype(wide_type(in.x)));
  Scratch scratch(in.x);
  dispatch_storage(in.x, "x", [&](auto zero) {
    using S = decltype(zero);
    if (y.numel() == 0) return;
    kernels_for<S>(in.x).mix(in.args<S>(a, base, y, u), context_for(in.x, scratch));
  });
  return u;
}

std::tuple<Tensor, Tensor> lowrank_mix(const Tensor& x, const OptionalTensor& base_,
                                       const Tensor& A, const Tensor& B, const OptionalTensor& a,
                                       const OptionalTensor& c, const OptionalTensor& M,
                                       const OptionalTensor& m, const OptionalTensor& scale,
                                       const OptionalTensor& gate, const Flags& has_inner,
                                       at::IntArrayRef ranks, const Flags& frozen,
                                       c10::string_view act) {
  const Mixture in(x, A, B, c, M, m, scale, gate, has_inner, ranks, frozen, act);
  const Tensor base = dense(base_, "base", in.x, "x", {in.N, in.Do});
  const Tensor y = empty({in.N, in.Do}, in.x.options());
  return {y, mix_to(in, a, base, y)};
}

Tensor lowrank_mix_(const Tensor& base, const Tensor& x, const Tensor& A, const Tensor& B,
                    const OptionalTensor& a, const OptionalTensor& c, const OptionalTensor& M,
                    const OptionalTensor& m, const OptionalTensor& scale,
                    const OptionalTensor& gate, const Flags& has_inner, at::IntArrayRef ranks,
                    const Flags& frozen, c10::string_view act) {
  const Mixture in(x, A, B, c, M, m, scale, gate, has_inner, ranks, frozen, act);
  check_like(base, "base", in.x, "x");
  check_shape(base, "base", {in.N, in.Do});
  TORCH_CHECK_VALUE(base.is_contiguous(), "base: expected a contiguous tensor to write in place");
  const Tensor u = mix_to(in, a, base, base);
  mark_written(base);
  return u;
}

using Gradients =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients lowrank_mix_backward(const Tensor& g_y_, const Tensor& x, const Tensor& u_,
                               const Tensor& A, const Tensor& B, const OptionalTensor& c,
                               const OptionalTensor& M, const OptionalTensor& m,
                               const OptionalTensor& scale, const OptionalTensor& gate,
                               const Flags& has_inner, at::IntArrayRef ranks, const Flags& frozen,
                               c10::string_view act, std::array<bool, 9> needs) {
  const Mixture in(x, A, B, c, M, m, scale, gate, has_inner, ranks, frozen, act);
  const Tensor g_y = dense(g_y_, "g_y", in.x, "x", {in.N, in.Do});
  const at::ScalarType wide = wide_type(in.x);
  const Tensor u = dense_typed(u_, "u", wide, in.x, "x", {in.N, in.adapters.columns()});
  const auto out = [&](int i, at::IntArrayRef shape, at::ScalarType type) {
    const auto options = in.x.options().dtype(type);
    return needs[size_t(i)] ? empty(shape, options) : at::empty({0}, options);
  };
  const Tensor g_x = out(0, {in.N, in.Din}, in.x.scalar_type());
  const Tensor g_A = out(1, {in.E, in.r, in.Din}, wide), g_B = out(2, {in.E, in.r, in.Do}, wide);
  const Tensor g_a = out(3, {in.E, in.r}, wide), g_c = out(4, {in.E, in.Do}, wide);
  const Tensor g_M = out(5, {in.E, in.r, in.r}, wide), g_m = out(6, {in.E, in.r}, wide);
  const Tensor g_scale = out(7, {in.E}, wide), g_gate = out(8, {in.N, in.E}, wide);
  Scratch scratch(in.x);
  dispatch_storage(in.x, "x", [&](auto zero) {
    using S = decltype(zero);
    using T = Wide<S>;
    if (in.E == 0) return;
    const MixBackwardArgs<S> args{in.args<S>({}, {}, {}, u), pointer<S>(g_y),   pointer<S>(g_x),
                                  pointer<T>(g_A),           pointer<T>(g_B),   pointer<T>(g_a),
                                  pointer<T>(g_c),           pointer<T>(g_M),   pointer<T>(g_m),
                                  pointer<T>(g_scale),       pointer<T>(g_gate)};
    kernels_for<S>(in.x).mix_backward(args, context_for(in.x, scratch));
  });
  return {g_x, g_A, g_B, g_a, g_c, g_M, g_m, g_scale, g_gate};
}

void define(torch::Library& m) {
  m.def(
      "lowrank_mix(Tensor x, Tensor? base, Tensor A, Tensor B, Tensor? a, Tensor? c, Tensor? M, "
      "Tensor? m, Tensor? scale, Tensor? gate, bool[] has_inner, int[] ranks, bool[] frozen, "
      "str act) -> (Tensor y, Tensor u)");
  m.def(
      "lowrank_mix_(Tensor(a!) base, Tensor x, Tensor A, Tensor B, Tensor? a, Tensor? c, "
      "Tensor? M, Tensor? m, Tensor? scale, Tensor? gate, bool[] has_inner, int[] ranks, "
      "bool[] frozen, str act) -> Tensor u");
  m.def(
      "lowrank_mix_backward(Tensor g_y, Tensor x, Tensor u, Tensor A, Tensor B, Tensor? c, "
      "Tensor? M, Tensor? m, Tensor? scale, Tensor? gate, bool[] has_inner, int[] ranks, "
      "bool[] frozen, str act, bool[9] needs) -> (Tensor g_x, Tensor g_A, Tensor g_B, "
      "Tensor g_a, Tensor g_c, Tensor g_M, Tensor g_m, Tensor g_scale, Tensor g_gate)");
}

void implement(torch::Library& m) {
  m.impl("lowrank_mix", &lowrank_mix);
  m.impl("lowrank_mix_", &lowrank_mix_);
  m.impl("lowrank_mix_backward", &lowrank_mix_backward);
}

}  // namespace

PYEXT_OPS(define, implement)

}  // namespace pyext::lowrank
