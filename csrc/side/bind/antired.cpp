// Torch ops: taps merged inside a token, and the gradients.
#include "side/bind/mixing.h"

namespace pyext::side {
namespace {

// The inputs, checked.
struct Merge {
  int64_t B, K, N, d;
  bool shared;  // one guide for all tokens
  Tensor g, h, a, c, w, b;
  double eps_l1, eps_l2;
  bool add_guide;

  Merge(const Tensor& g_, const Tensor& h_, const OptionalTensor& a_, const OptionalTensor& c_,
        const Tensor& w_, const Tensor& b_, double eps_l1_, double eps_l2_, bool add_guide_)
      : eps_l1(eps_l1_), eps_l2(eps_l2_), add_guide(add_guide_) {
    check_shape(g_, "g", {-1, -1, -1});
    B = g_.size(0);
    d = g_.size(2);
    h = activations(h_, g_, "g", B, d);
    K = h.size(1);
    N = h.size(2);
    TORCH_CHECK_VALUE(K >= 1, "h: expected at least one tap, got none");
    shared = g_.size(1) == 1 && N != 1;
    check_shape(g_, "g", {B, shared ? 1 : N, d});
    g = g_.expand({B, N, d}).contiguous();
    a = dense_wide(a_, "a", g, "g", {K, d});
    c = dense_wide(c_, "c", g, "g", {K, d});
    w = dense_wide(w_, "w", g, "g", {d});
    b = dense_wide(b_, "b", g, "g", {1});
  }

  at::TensorOptions wide() const { return g.options().dtype(wide_type(g)); }

  template <class S>
  AntiredArgs<S> args() const {
    using W = Wide<S>;
    AntiredArgs<S> x{};
    x.samples = B;
    x.taps = K;
    x.tokens = N;
    x.channels = d;
    x.g = pointer<S>(g);
    x.h = pointer<S>(h);
    x.sample_stride = h.stride(0);
    x.tap_stride = h.stride(1);
    x.token_stride = h.stride(2);
    x.a = pointer<W>(a);
    x.c = pointer<W>(c);
    x.w = pointer<W>(w);
    x.b = pointer<W>(b);
    x.eps_l1 = W(eps_l1);
    x.eps_l2 = W(eps_l2);
    x.add_guide = add_guide;
    return x;
  }
};

std::tuple<Tensor, Tensor> side_antired(const Tensor& g, const Tensor& h, const OptionalTensor& a,
                                        const OptionalTensor& c, const Tensor& w, const Tensor& b,
                                        double eps_l1, double eps_l2, bool add_guide) {
  const Merge in(g, h, a, c, w, b, eps_l1, eps_l2, add_guide);
  Tensor z = empty({in.B, in.N, in.d}, in.g.options());
  Tensor beta = at::empty({in.B, in.N, in.K}, in.wide());
  Scratch scratch(in.g);
  dispatch_storage(in.g, "g", [&](auto zero) {
    using S = decltype(zero);
    if (beta.numel() == 0) return;
    auto args = in.args<S>();
    args.z = pointer<S>(z);
    args.beta = pointer<Wide<S>>(beta);
    kernels_for<S>(in.g).antired(args, context_for(in.g, scratch));
  });
  return {z, beta};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> side_antired_backward(
    const Tensor& g_z_, const Tensor& g, const Tensor& h, const OptionalTensor& a,
    const OptionalTensor& c, const Tensor& w, const Tensor& b, double eps_l1, double eps_l2,
    bool add_guide) {
  const Merge in(g, h, a, c, w, b, eps_l1, eps_l2, add_guide);
  const Tensor g_z = dense(g_z_, "g_z", in.g, "g", {in.B, in.N, in.d});
  Tensor g_g = empty({in.B, in.N, in.d}, in.g.options()), g_h = empty_gradient(in.h);
  Tensor g_a = empty_where(in.a, {in.K, in.d}, in.wide());
  Tensor g_c = empty_where(in.c, {in.K, in.d}, in.wide());
  Tensor g_w = at::zeros({in.d}, in.wide()), g_b = at::zeros({1}, in.wide());
  Scratch scratch(in.g);
  dispatch_storage(in.g, "g", [&](auto zero) {
    using S = decltype(zero);
    using W = Wide<S>;
    if (in.h.numel() == 0) {
      g_a.zero_();
      g_c.zero_();
      return;
    }
    AntiredBackwardArgs<S> args{};
    args.forward = in.args<S>();
    args.g_z = pointer<S>(g_z);
    args.g_g = pointer<S>(g_g);
    args.g_h = pointer<S>(g_h);
    args.sample_stride = g_h.stride(0);
    args.tap_stride = g_h.stride(1);
    args.token_stride = g_h.stride(2);
    args.g_a = pointer<W>(g_a);
    args.g_c = pointer<W>(g_c);
    args.g_w = pointer<W>(g_w);
    args.g_b = pointer<W>(g_b);
    kernels_for<S>(in.g).antired_backward(args, context_for(in.g, scratch));
  });
  if (in.shared) g_g = ordered_sum(g_g, {1}).unsqueeze(1).to(g_g.scalar_type());
  return {g_g, g_h, as_given(g_a, a), as_given(g_c, c), as_given(g_w, w), as_given(g_b, b)};
}

void define(torch::Library& m) {
  m.def(
      "side_antired(Tensor g, Tensor h, Tensor? a, Tensor? c, Tensor w, Tensor b, float eps_l1, "
      "float eps_l2, bool add_guide) -> (Tensor z, Tensor beta)");
  m.def(
      "side_antired_backward(Tensor g_z, Tensor g, Tensor h, Tensor? a, Tensor? c, Tensor w, "
      "Tensor b, float eps_l1, float eps_l2, bool add_guide) -> (Tensor g_g, Tensor g_h, "
      "Tensor g_a, Tensor g_c, Tensor g_w, Tensor g_b)");
}

void implement(torch::Library& m) {
  m.impl("side_antired", &side_antired);
  m.impl("side_antired_backward", &side_antired_backward);
}

}  // namespace

PYEXT_OPS(define, implement)

}  // namespace pyext::side
