// Torch op: a DDIM step with guidance.
#include "circle/bind/bind.h"

namespace pyext::circle {
namespace {

Tensor circle_ddim_affine_step(const Tensor& eps_, const Tensor& x_, const Tensor& coef_,
                               double guidance, bool cfg, double clip, int64_t dup) {
  TORCH_CHECK_VALUE(x_.dim() >= 1, "x: expected shape [B, ...], got ", x_.sizes());
  TORCH_CHECK_VALUE(dup == 1 || dup == 2, "dup: expected 1 or 2, got ", dup);
  const Tensor x = x_.contiguous();
  const int64_t B = x.size(0);
  std::vector<int64_t> shape = x.sizes().vec();
  shape[0] = cfg ? 2 * B : B;
  const Tensor eps = dense(eps_, "eps", x, "x", shape);
  const int64_t columns = clip > 0 ? 5 : 2;
  const Tensor coef = dense_typed(coef_, "coef", at::kDouble, x, "x", {-1, columns});
  TORCH_CHECK_VALUE(coef.size(0) == 1 || coef.size(0) == B, "coef: expected 1 or ", B,
                    " rows, got ", coef.size(0));
  shape[0] = dup * B;
  Tensor y = empty(shape, x.options());
  Scratch scratch(x);
  dispatch_storage(x, "x", [&](auto zero) {
    using S = decltype(zero);
    const int64_t values = x.numel();
    if (values == 0) return;
    const S* first = pointer<S>(eps);
    // Guidance 1 is the condition alone: the other half need not be read.
    const DdimAffineStepArgs<S> args{B,
                                     values / B,
                                     dup,
                                     guidance,
                                     clip,
                                     cfg ? first + values : first,
                                     cfg && guidance != 1.0 ? first : nullptr,
                                     pointer<S>(x),
                                     data<double>(coef),
                                     coef.size(0) == 1 ? 0 : columns,
                                     pointer<S>(y)};
    kernels_for<S>(x).ddim_affine_step(args, context_for(x, scratch));
  });
  return y;
}

void define(torch::Library& m) {
  m.def(
      "circle_ddim_affine_step(Tensor eps, Tensor x, Tensor coef, float guidance, bool cfg, float "
      "clip, "
      "int dup) -> Tensor y");
}

void implement(torch::Library& m) { m.impl("circle_ddim_affine_step", &circle_ddim_affine_step); }

}  // namespace

PYEXT_OPS(define, implement)

}  // namespace pyext::circle
