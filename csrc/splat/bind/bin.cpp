// Torch op: tile lists.
#include "splat/bind/bind.h"

namespace pyext::splat {
namespace {

// Receives the number of entries and makes the two lists.
struct Lists {
  at::TensorOptions options;
  Tensor tile_ids, entries_of;
  static void allocate(void* self, int64_t entries, int32_t** tile_ids, int32_t** entries_of) {
    TORCH_CHECK_VALUE(entries < (int64_t(1) << 31), "the image needs ", entries,
                      " (tile, Gaussian) entries, and fewer than 2^31 fit in one call: lower the "
                      "resolution, raise radius_clip or pass fewer cameras");
    auto* lists = static_cast<Lists*>(self);
    lists->tile_ids = at::empty({entries}, lists->options);
    lists->entries_of = at::empty({entries}, lists->options);
    *tile_ids = data<int32_t>(lists->tile_ids);
    *entries_of = data<int32_t>(lists->entries_of);
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> splat_bin(
    const Tensor& means2d_, const Tensor& radii_, const Tensor& depths_, const Tensor& conics_,
    const Tensor& opacities_, int64_t width, int64_t height, bool exact) {
  check_shape(means2d_, "means2d", {-1, -1, 2});
  const int64_t I = means2d_.size(0), N = means2d_.size(1);
  check_flat_ids("means2d", I, N);
  const Tensor means2d = means2d_.contiguous();
  const Tensor radii = dense_typed(radii_, "radii", at::kInt, means2d, "means2d", {I, N, 2});
  const Tensor depths = dense(depths_, "depths", means2d, "means2d", {I, N});
  const Tensor conics = dense(conics_, "conics", means2d, "means2d", {I, N, 3});
  const Tensor opacities = dense(opacities_, "opacities", means2d, "means2d", {I, N});
  const auto options = means2d.options().requires_grad(false);
  const int32_t w = image_side(width, "width"), h = image_side(height, "height");
  Tensor tile_offsets = at::zeros({tiles_of(I, w, h) + 1}, options.dtype(at::kLong));
  Tensor order = at::empty({I * N}, options.dtype(at::kInt));
  Tensor starts = at::zeros({I * N + 1}, options.dtype(at::kLong));
  Lists lists{options.dtype(at::kInt), at::empty({0}, options.dtype(at::kInt)),
              at::empty({0}, options.dtype(at::kInt))};
  Scratch scratch(means2d);
  dispatch(means2d, "means2d", [&](auto zero) {
    using T = decltype(zero);
    if (I * N == 0) return;
    const BinArgs<T> args{I,
                          N,
                          data<T>(means2d),
                          data<int32_t>(radii),
                          data<T>(depths),
                          data<T>(conics),
                          data<T>(opacities),
                          w,
                          h,
                          exact,
                          data<int64_t>(tile_offsets),
                          data<int32_t>(order),
                          data<int64_t>(starts),
                          &lists,
                          &Lists::allocate};
    kernels_for<T>(means2d).bin(args, context_for(means2d, scratch));
  });
  return {tile_offsets, lists.tile_ids, order, starts, lists.entries_of};
}

void define(torch::Library& m) {
  m.def(
      "splat_bin(Tensor means2d, Tensor radii, Tensor depths, Tensor conics, Tensor opacities, "
      "int width, int height, bool exact) "
      "-> (Tensor tile_offsets, Tensor tile_ids, Tensor order, Tensor starts, Tensor entries_of)");
}

void implement(torch::Library& m) { m.impl("splat_bin", &splat_bin); }

}  // namespace

PYEXT_OPS(define, implement)

}  // namespace pyext::splat
