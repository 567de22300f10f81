// Torch ops: weights of taps from their means, and the gradients.
#include "side/bind/mixing.h"

namespace pyext::side {
namespace {

// The inputs, checked and contiguous. Means are float32, or float64.
struct Means {
  int64_t B, K, d;
  Tensor pool_q, pool, a, c, w, b;

  Means(const Tensor& pool_q_, const Tensor& pool_, const OptionalTensor& a_,
        const OptionalTensor& c_, const Tensor& w_, const Tensor& b_) {
    check_shape(pool_, "pool", {-1, -1, -1});
    TORCH_CHECK_TYPE(pool_.scalar_type() == wide_type(pool_),
                     "pool: expected dtype float32 or float64, got ", pool_.scalar_type());
    B = pool_.size(0);
    K = pool_.size(1);
    d = pool_.size(2);
    TORCH_CHECK_VALUE(K >= 1, "pool: expected at least one tap, got none");
    pool = pool_.contiguous();
    pool_q = dense(pool_q_, "pool_q", pool, "pool", {B, d});
    a = dense_wide(a_, "a", pool, "pool", {K, d});
    c = dense_wide(c_, "c", pool, "pool", {K, d});
    w = dense_wide(w_, "w", pool, "pool", {d});
    b = dense_wide(b_, "b", pool, "pool", {1});
  }

  template <class S>
  ConfidenceArgs<S> args(const Tensor& alpha) const {
    return {B,
            K,
            d,
            pointer<S>(pool_q),
            pointer<S>(pool),
            pointer<S>(a),
            pointer<S>(c),
            pointer<S>(w),
            pointer<S>(b),
            pointer<S>(alpha)};
  }
};

// Runs body(S{}) for float or double.
template <class Body>
void dispatch_wide(const Tensor& tensor, Body body) {
  const c10::OptionalDeviceGuard guard(tensor.device());
  if (tensor.scalar_type() == at::kDouble)
    body(double());
  else
    body(float());
}

Tensor side_confidence(const Tensor& pool_q, const Tensor& pool, const OptionalTensor& a,
                       const OptionalTensor& c, const Tensor& w, const Tensor& b) {
  const Means in(pool_q, pool, a, c, w, b);
  Tensor alpha = at::empty({in.B, in.K}, in.pool.options());
  Scratch scratch(in.pool);
  dispatch_wide(in.pool, [&](auto zero) {
    using S = decltype(zero);
    if (in.B == 0) return;
    kernels_for<S>(in.pool).confidence(in.args<S>(alpha), context_for(in.pool, scratch));
  });
  return alpha;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> side_confidence_backward(
    const Tensor& g_alpha_, const Tensor& alpha_, const Tensor& pool_q, const Tensor& pool,
    const OptionalTensor& a, const OptionalTensor& c, const Tensor& w, const Tensor& b) {
  const Means in(pool_q, pool, a, c, w, b);
  const Tensor g_alpha = dense(g_alpha_, "g_alpha", in.pool, "pool", {in.B, in.K});
  const Tensor alpha = dense(alpha_, "alpha", in.pool, "pool", {in.B, in.K});
  const auto options = in.pool.options();
  Tensor g_pool_q = at::empty({in.B, in.d}, options), g_pool = at::empty_like(in.pool);
  Tensor g_a = empty_where(in.a, {in.K, in.d}, options);
  Tensor g_c = empty_where(in.c, {in.K, in.d}, options), g_w = at::empty({in.d}, options);
  Scratch scratch(in.pool);
  dispatch_wide(in.pool, [&](auto zero) {
    using S = decltype(zero);
    if (in.d == 0) return;
    const ConfidenceBackwardArgs<S> args{
        in.args<S>(alpha), pointer<S>(g_alpha), pointer<S>(g_pool_q), pointer<S>(g_pool),
        pointer<S>(g_a),   pointer<S>(g_c),     pointer<S>(g_w)};
    kernels_for<S>(in.pool).confidence_backward(args, context_for(in.pool, scratch));
  });
  return {g_pool_q, g_pool, as_given(g_a, a), as_given(g_c, c), as_given(g_w, w)};
}

void define(torch::Library& m) {
  m.def(
      "side_confidence(Tensor pool_q, Tensor pool, Tensor? a, Tensor? c, Tensor w, Tensor b) "
      "-> Tensor alpha");
  m.def(
      "side_confidence_backward(Tensor g_alpha, Tensor alpha, Tensor pool_q, Tensor pool, "
      "Tensor? a, Tensor? c, Tensor w, Tensor b) -> (Tensor g_pool_q, Tensor g_pool, Tensor g_a, "
      "Tensor g_c, Tensor g_w)");
}

void implement(torch::Library& m) {
  m.impl("side_confidence", &side_confidence);
  m.impl("side_confidence_backward", &side_confidence_backward);
}

}  // namespace

PYEXT_OPS(define, implement)

}  // namespace pyext::side
