// Torch op: the Gaussians behind each pixel.
#include "splat/bind/drawn.h"

namespace pyext::splat {
namespace {

std::tuple<Tensor, Tensor, Tensor> splat_contributors(
    const Tensor& means2d, const Tensor& conics, const Tensor& opacities,
    const Tensor& tile_offsets, const Tensor& tile_ids, const Tensor& order, const Tensor& starts,
    const Tensor& entries_of, int64_t width, int64_t height, double alpha_max, int64_t k) {
  TORCH_CHECK_VALUE(k >= 1, "k: expected at least 1, got ", k);
  const Drawn in(means2d, conics, opacities, tile_offsets, tile_ids, order, starts, entries_of,
                 width, height, alpha_max);
  const auto options = in.means2d.options().requires_grad(false);
  Tensor ids = at::empty({in.I, in.height, in.width, k}, options.dtype(at::kInt));
  Tensor weights = at::empty({in.I, in.height, in.width, k}, options);
  Tensor count = at::empty({in.I, in.height, in.width}, options.dtype(at::kInt));
  Scratch scratch(in.means2d);
  dispatch(in.means2d, "means2d", [&](auto zero) {
    using T = decltype(zero);
    if (in.I == 0) return;
    const ContributorsArgs<T> args{in.args<T>(0), k, data<int32_t>(ids), data<T>(weights),
                                   data<int32_t>(count)};
    kernels_for<T>(in.means2d).contributors(args, context_for(in.means2d, scratch));
  });
  return {ids, weights, count};
}

void define(torch::Library& m) {
  m.def(
      "splat_contributors(Tensor means2d, Tensor conics, Tensor opacities, Tensor tile_offsets, "
      "Tensor tile_ids, Tensor order, Tensor starts, Tensor entries_of, int width, int height, "
      "float alpha_max, int k) -> (Tensor ids, Tensor weights, Tensor count)");
}

void implement(torch::Library& m) { m.impl("splat_contributors", &splat_contributors); }

}  // namespace

PYEXT_OPS(define, implement)

}  // namespace pyext::splat
