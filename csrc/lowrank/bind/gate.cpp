// Torch ops: the noisy top-k gate and its gradients.
#include <array>

#include "lowrank/bind/bind.h"

namespace pyext::lowrank {
namespace {

// The inputs, checked, contiguous and wide.
struct Gating {
  int64_t N, D, E;
  Tensor x, w, eps;  // w: the columns of Wg and then of Wn, as rows

  Gating(const Tensor& x_, const Tensor& Wg, const OptionalTensor& Wn, const OptionalTensor& eps_) {
    check_shape(x_, "x", {-1, -1});
    x = x_.contiguous();
    N = x.size(0), D = x.size(1);
    const Tensor gate = dense_wide(Wg, "Wg", x, "x", {D, -1});
    E = gate.size(1);
    TORCH_CHECK_VALUE(E >= 1 && E <= kMaxRank, "Wg: expected 1 to ", kMaxRank, " columns, got ", E);
    TORCH_CHECK_VALUE(Wn.has_value() == eps_.has_value(),
                      "eps: noise needs both Wn and eps, or neither");
    const Tensor noise = dense_wide(Wn, "Wn", x, "x", {D, E});
    eps = dense_typed(eps_, "eps", wide_type(x), x, "x", {N, E});
    w = noise.defined() ? at::cat({gate.t(), noise.t()}) : gate.t();
    w = w.contiguous();
  }

  Tensor values() const { return at::empty({N, E}, w.options()); }
  Tensor values_with_noise() const { return at::empty({eps.defined() ? N : 0, E}, w.options()); }

  template <class S>
  NoisyGateArgs<S> args(int64_t topk, double floor, const Tensor& gate, const Tensor& logits,
                        const Tensor& deviations) const {
    return {N,
            D,
            E,
            topk,
            floor,
            pointer<S>(x),
            pointer<Wide<S>>(w),
            pointer<Wide<S>>(eps),
            pointer<Wide<S>>(gate),
            pointer<Wide<S>>(logits),
            pointer<Wide<S>>(deviations)};
  }
};

std::tuple<Tensor, Tensor, Tensor> lowrank_noisy_gate(const Tensor& x, const Tensor& Wg,
                                                      const OptionalTensor& Wn,
                                                      const OptionalTensor& eps, int64_t topk,
                                                      double floor) {
  const Gating in(x, Wg, Wn, eps);
  TORCH_CHECK_VALUE(topk >= 1 && topk <= in.E, "topk: expected 1 to ", in.E, ", got ", topk);
  const Tensor gate = in.values(), logits = in.values(), deviations = in.values_with_noise();
  Scratch scratch(in.x);
  dispatch_storage(in.x, "x", [&](auto zero) {
    using S = decltype(zero);
    if (in.N == 0) return;
    kernels_for<S>(in.x).noisy_gate(in.args<S>(topk, floor, gate, logits, deviations),
                                    context_for(in.x, scratch));
  });
  return {gate, logits, deviations};
}

std::tuple<Tensor, Tensor, Tensor> lowrank_noisy_gate_backward(
    const Tensor& g_gate_, const Tensor& g_logits_, const Tensor& x, const Tensor& Wg,
    const OptionalTensor& Wn, const OptionalTensor& eps, const Tensor& gate_,
    const Tensor& deviations_, std::array<bool, 3> need) {
  const Gating in(x, Wg, Wn, eps);
  const auto dense_values = [&](const Tensor& values, const char* name, int64_t rows) {
    return dense(values, name, in.w, "the columns", {rows, in.E});
  };
  const Tensor g_gate = dense_values(g_gate_, "g_gate", in.N);
  const Tensor g_logits = dense_values(g_logits_, "g_logits", in.N);
  const Tensor gate = dense_values(gate_, "gate", in.N);
  const Tensor deviations = dense_values(deviations_, "deviations", in.eps.defined() ? in.N : 0);
  const bool columns = need[1] || need[2];
  Tensor g_x = need[0] ? empty(in.x.sizes(), in.x.options()) : at::empty({0}, in.x.options());
  Tensor g_w = columns ? at::zeros_like(in.w) : at::empty({0}, in.w.options());
  Scratch scratch(in.x);
  dispatch_storage(in.x, "x", [&](auto zero) {
    using S = decltype(zero);
    if (in.N == 0) return;
    const NoisyGateBackwardArgs<S> args{in.args<S>(in.E, 0.0, gate, {}, deviations),
                                        pointer<Wide<S>>(g_gate), pointer<Wide<S>>(g_logits),
                                        pointer<S>(g_x), pointer<Wide<S>>(g_w)};
    kernels_for<S>(in.x).noisy_gate_backward(args, context_for(in.x, scratch));
  });
  const auto part = [&](bool needed, int64_t first, const Tensor& like) {
    if (!needed) return at::empty({0}, like.options());
    return g_w.narrow(0, first, in.E).t().to(like.scalar_type()).contiguous();
  };
  return {g_x, part(need[1], 0, Wg), part(need[2] && Wn, in.E, Wn ? *Wn : Wg)};
}

void define(torch::Library& m) {
  m.def(
      "lowrank_noisy_gate(Tensor x, Tensor Wg, Tensor? Wn, Tensor? eps, int topk, float floor) "
      "-> (Tensor gate, Tensor logits, Tensor deviations)");
  m.def(
      "lowrank_noisy_gate_backward(Tensor g_gate, Tensor g_logits, Tensor x, Tensor Wg, "
      "Tensor? Wn, Tensor? eps, Tensor gate, Tensor deviations, bool[3] need) -> (Tensor g_x, "
      "Tensor g_Wg, Tensor g_Wn)");
}

void implement(torch::Library& m) {
  m.impl("lowrank_noisy_gate", &lowrank_noisy_gate);
  m.impl("lowrank_noisy_gate_backward", &lowrank_noisy_gate_backward);
}

}  // namespace

PYEXT_OPS(define, implement)

}  // namespace pyext::lowrank
