// Torch op: pixel values back to Gaussians.
#include "splat/bind/drawn.h"

namespace pyext::splat {
namespace {

std::tuple<Tensor, Tensor, Tensor> splat_unproject(
    const Tensor& means2d, const Tensor& conics, const Tensor& opacities, const Tensor& values_,
    const OptionalTensor& mask_, const Tensor& tile_offsets, const Tensor& tile_ids,
    const Tensor& order, const Tensor& starts, const Tensor& entries_of, int64_t width,
    int64_t height, double alpha_max, bool count) {
  const Drawn in(means2d, conics, opacities, tile_offsets, tile_ids, order, starts, entries_of,
                 width, height, alpha_max);
  const Tensor values =
      dense(values_, "values", in.means2d, "means2d", {in.I, in.height, in.width, -1});
  const Tensor mask = in.mask(mask_);
  const int64_t D = values.size(3);
  const auto options = in.means2d.options().requires_grad(false);
  Tensor sum = at::empty({in.I, in.N, D}, options), mass = at::empty({in.I, in.N}, options);
  Tensor hits = at::empty({in.I, in.N}, options.dtype(at::kInt));
  Scratch scratch(in.means2d);
  dispatch(in.means2d, "means2d", [&](auto zero) {
    using T = decltype(zero);
    if (in.I * in.N == 0) return;
    const UnprojectArgs<T> args{in.args<T>(D),
                                data<int32_t>(in.order),
                                data<int64_t>(in.starts),
                                data<int32_t>(in.entries_of),
                                data<T>(values),
                                data<bool>(mask),
                                count,
                                data<T>(sum),
                                data<T>(mass),
                                data<int32_t>(hits)};
    kernels_for<T>(in.means2d).unproject(args, context_for(in.means2d, scratch));
  });
  return {sum, mass, hits};
}

void define(torch::Library& m) {
  m.def(
      "splat_unproject(Tensor means2d, Tensor conics, Tensor opacities, Tensor values, "
      "Tensor? mask, Tensor tile_offsets, Tensor tile_ids, Tensor order, Tensor starts, "
      "Tensor entries_of, int width, int height, float alpha_max, bool count) "
      "-> (Tensor sum, Tensor mass, Tensor hits)");
}

void implement(torch::Library& m) { m.impl("splat_unproject", &splat_unproject); }

}  // namespace

PYEXT_OPS(define, implement)

}  // namespace pyext::splat
