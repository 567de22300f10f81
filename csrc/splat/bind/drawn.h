// Projected Gaussians with their tile lists, as the ops take them that bring pixels back to them.
#pragma once

#include "splat/bind/bind.h"

namespace pyext::splat {

// Checked and contiguous.
struct Drawn {
  int64_t I, N;
  int32_t width, height;
  double alpha_max;
  Tensor means2d, conics, opacities, tile_offsets, tile_ids, order, starts, entries_of;

  Drawn(const Tensor& means2d_, const Tensor& conics_, const Tensor& opacities_,
        const Tensor& tile_offsets_, const Tensor& tile_ids_, const Tensor& order_,
        const Tensor& starts_, const Tensor& entries_of_, int64_t width_, int64_t height_,
        double alpha_max_)
      : width(image_side(width_, "width")),
        height(image_side(height_, "height")),
        alpha_max(alpha_max_) {
    check_shape(means2d_, "means2d", {-1, -1, 2});
    I = means2d_.size(0);
    N = means2d_.size(1);
    check_flat_ids("means2d", I, N);
    means2d = means2d_.contiguous();
    conics = dense(conics_, "conics", means2d, "means2d", {I, N, 3});
    opacities = dense(opacities_, "opacities", means2d, "means2d", {I, N});
    auto integers = [&](const Tensor& tensor, const char* name, at::ScalarType type, int64_t size) {
      return dense_typed(tensor, name, type, means2d, "means2d", {size});
    };
    tile_offsets =
        integers(tile_offsets_, "tile_offsets", at::kLong, tiles_of(I, width, height) + 1);
    tile_ids = integers(tile_ids_, "tile_ids", at::kInt, -1);
    order = integers(order_, "order", at::kInt, I * N);
    starts = integers(starts_, "starts", at::kLong, I * N + 1);
    entries_of = integers(entries_of_, "entries_of", at::kInt, tile_ids.numel());
    // Each list by itself: that the lists by tile and by Gaussian are of the same entries, as
    // splat_bin makes them, is not looked at.
    check_offsets(tile_offsets, "tile_offsets", tile_ids.numel());
    check_indices(tile_ids, "tile_ids", I * N);
    check_indices(order, "order", I * N);
    check_offsets(starts, "starts", tile_ids.numel());
    check_indices(entries_of, "entries_of", tile_ids.numel());
  }

  // Which pixels count, [I, H, W]; undefined when not given.
  Tensor mask(const OptionalTensor& tensor) const {
    if (!tensor) return {};
    return dense_typed(*tensor, "mask", at::kBool, means2d, "means2d", {I, height, width});
  }

  template <class T>
  CompositeArgs<T> args(int64_t channels) const {
    CompositeArgs<T> a{};
    a.images = I;
    a.gaussians = N;
    a.channels = channels;
    a.means2d = data<T>(means2d);
    a.conics = data<T>(conics);
    a.opacities = data<T>(opacities);
    a.tile_offsets = data<int64_t>(tile_offsets);
    a.tile_ids = data<int32_t>(tile_ids);
    a.entries = tile_ids.numel();
    a.width = width;
    a.height = height;
    a.alpha_max = T(alpha_max);
    return a;
  }
};

}  // namespace pyext::splat
