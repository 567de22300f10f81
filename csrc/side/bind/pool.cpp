// Torch ops: feature maps pooled to tokens.
#include "side/bind/bind.h"

namespace pyext::side {
namespace {

Tensor side_maxavg_pool(const Tensor& x_, int64_t r) {
  check_shape(x_, "x", {-1, -1, -1, -1});
  const int64_t B = x_.size(0), C = x_.size(1), H = x_.size(2), W = x_.size(3);
  TORCH_CHECK_VALUE(r >= 1, "r: expected at least 1, got ", r);
  TORCH_CHECK_VALUE(H % r == 0 && W % r == 0, "x: a map of ", H, "x", W, " is not divisible by ",
                    r);
  const Tensor x = x_.contiguous();
  Tensor y = at::empty({B, H / r * (W / r), C}, x.options());
  Scratch scratch(x);
  dispatch_storage(x, "x", [&](auto zero) {
    using S = decltype(zero);
    if (x.numel() == 0) return;
    const MaxavgPoolArgs<S> args{B, C, H, W, r, pointer<S>(x), pointer<S>(y)};
    kernels_for<S>(x).maxavg_pool(args, context_for(x, scratch));
  });
  return y;
}

// The inputs of the guided pooling, checked and contiguous.
struct Guided {
  int64_t B, C, H, W, h, w;
  double eps;
  Tensor x, guide;

  Guided(const Tensor& x_, const Tensor& guide_, double eps_) : eps(eps_) {
    check_shape(x_, "x", {-1, -1, -1, -1});
    B = x_.size(0), C = x_.size(1), H = x_.size(2), W = x_.size(3);
    x = x_.contiguous();
    guide = dense(guide_, "guide", x, "x", {B, C, -1, -1});
    h = guide.size(2), w = guide.size(3);
    TORCH_CHECK_VALUE(h > 0 && w > 0 && H % h == 0 && W % w == 0 && H / h == W / w, "x: a map of ",
                      H, "x", W, " is not an integer multiple of the guide grid ", h, "x", w);
    TORCH_CHECK_VALUE(eps > 0, "eps: expected a positive number, got ", eps);
  }

  template <class S>
  GuidedPoolArgs<S> args(const Tensor& y, const Tensor& score) const {
    return {B,
            C,
            H,
            W,
            h,
            w,
            eps,
            pointer<S>(x),
            pointer<S>(guide),
            pointer<S>(y),
            pointer<Wide<S>>(score)};
  }
};

std::tuple<Tensor, Tensor> side_guided_pool(const Tensor& x, const Tensor& guide, double eps) {
  const Guided in(x, guide, eps);
  Tensor y = at::empty({in.B, in.h * in.w, in.C}, in.x.options());
  Tensor score = at::empty({in.B, in.H, in.W}, in.x.options().dtype(wide_type(in.x)));
  if (in.x.numel() == 0) return {y, score.zero_()};
  Scratch scratch(in.x);
  dispatch_storage(in.x, "x", [&](auto zero) {
    using S = decltype(zero);
    kernels_for<S>(in.x).guided_pool(in.args<S>(y, score), context_for(in.x, scratch));
  });
  return {y, score};
}

std::tuple<Tensor, Tensor> side_guided_pool_backward(const Tensor& x, const Tensor& guide,
                                                     double eps, const Tensor& score_,
                                                     const Tensor& g_y_, bool need_x) {
  const Guided in(x, guide, eps);
  const Tensor score = dense_wide(score_, "score", in.x, "x", {in.B, in.H, in.W});
  const Tensor g_y = dense(g_y_, "g_y", in.x, "x", {in.B, in.h * in.w, in.C});
  Tensor g_guide = at::empty(in.guide.sizes(), in.x.options());
  Tensor g_x = need_x ? at::empty(in.x.sizes(), in.x.options()) : at::empty({0}, in.x.options());
  if (in.x.numel() == 0) return {g_guide.zero_(), g_x};
  Scratch scratch(in.x);
  dispatch_storage(in.x, "x", [&](auto zero) {
    using S = decltype(zero);
    const GuidedPoolBackwardArgs<S> args{in.args<S>({}, score), pointer<S>(g_y),
                                         pointer<S>(g_guide), pointer<S>(g_x)};
    kernels_for<S>(in.x).guided_pool_backward(args, context_for(in.x, scratch));
  });
  return {g_guide, g_x};
}

void define(torch::Library& m) {
  m.def("side_maxavg_pool(Tensor x, int r) -> Tensor y");
  m.def("side_guided_pool(Tensor x, Tensor guide, float eps) -> (Tensor y, Tensor score)");
  m.def(
      "side_guided_pool_backward(Tensor x, Tensor guide, float eps, Tensor score, Tensor g_y, "
      "bool need_x) -> (Tensor g_guide, Tensor g_x)");
}

void implement(torch::Library& m) {
  m.impl("side_maxavg_pool", &side_maxavg_pool);
  m.impl("side_guided_pool", &side_guided_pool);
  m.impl("side_guided_pool_backward", &side_guided_pool_backward);
}

}  // namespace

PYEXT_OPS(define, implement)

}  // namespace pyext::side
