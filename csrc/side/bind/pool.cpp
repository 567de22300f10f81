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
  dispatch(x, "x", [&](auto zero) {
    using S = decltype(zero);
    if (x.numel() == 0) return;
    const MaxavgPoolArgs<S> args{B, C, H, W, r, pointer<S>(x), pointer<S>(y)};
    kernels_for<S>(x).maxavg_pool(args, context_for(x, scratch));
  });
  return y;
}

void define(torch::Library& m) { m.def("side_maxavg_pool(Tensor x, int r) -> Tensor y"); }

void implement(torch::Library& m) { m.impl("side_maxavg_pool", &side_maxavg_pool); }

}  // namespace

PYEXT_SIDE_OPS(define, implement)

}  // namespace pyext::side
