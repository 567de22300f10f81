// Torch ops: compositing, and its gradient.
#include "splat/bind/drawn.h"

namespace pyext::splat {
namespace {

// What is drawn, and the features it is drawn with.
struct CompositeInputs : Drawn {
  int64_t D;
  Tensor features;

  CompositeInputs(const Tensor& means2d_, const Tensor& conics_, const Tensor& opacities_,
                  const Tensor& features_, const Tensor& tile_offsets_, const Tensor& tile_ids_,
                  const Tensor& order_, const Tensor& starts_, const Tensor& entries_of_,
                  int64_t width_, int64_t height_, double alpha_max_)
      : Drawn(means2d_, conics_, opacities_, tile_offsets_, tile_ids_, order_, starts_, entries_of_,
              width_, height_, alpha_max_) {
    check_shape(features_, "features", {I, N, -1});
    D = features_.size(2);
    TORCH_CHECK_VALUE(D >= 1, "features: expected at least one channel, got ", features_.sizes());
    features = dense(features_, "features", means2d, "means2d", {I, N, D});
  }

  template <class T>
  CompositeArgs<T> args() const {
    CompositeArgs<T> a = Drawn::args<T>(D);
    a.features = data<T>(features);
    return a;
  }
};

std::tuple<Tensor, Tensor, Tensor> splat_composite(const Tensor& means2d, const Tensor& conics,
                                                   const Tensor& opacities, const Tensor& features,
                                                   const Tensor& tile_offsets,
                                                   const Tensor& tile_ids, const Tensor& order,
                                                   const Tensor& starts, const Tensor& entries_of,
                                                   int64_t width, int64_t height, double alpha_max,
                                                   const OptionalTensor& absolute) {
  const CompositeInputs in(means2d, conics, opacities, features, tile_offsets, tile_ids, order,
                           starts, entries_of, width, height, alpha_max);
  dense(absolute, "absolute", means2d, "means2d", {in.I, in.N, 2});
  const auto options = in.means2d.options();
  Tensor out = empty({in.I, in.height, in.width, in.D}, options);
  Tensor transmittance = at::empty({in.I, in.height, in.width}, options);
  Tensor last = at::empty({in.I, in.height, in.width}, options.dtype(at::kInt));
  Scratch scratch(in.means2d);
  dispatch(in.means2d, "means2d", [&](auto zero) {
    using T = decltype(zero);
    if (in.I == 0) return;
    CompositeArgs<T> args = in.args<T>();
    args.out = data<T>(out);
    args.transmittance = data<T>(transmittance);
    args.last = data<int32_t>(last);
    kernels_for<T>(in.means2d).composite(args, context_for(in.means2d, scratch));
  });
  return {out, transmittance, last};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> splat_composite_backward(
    const Tensor& means2d, const Tensor& conics, const Tensor& opacities, const Tensor& features,
    const Tensor& tile_offsets, const Tensor& tile_ids, const Tensor& order, const Tensor& starts,
    const Tensor& entries_of, int64_t width, int64_t height, double alpha_max,
    const Tensor& transmittance_, const Tensor& last_, const Tensor& g_out_,
    const Tensor& g_transmittance_, bool absgrad) {
  const CompositeInputs in(means2d, conics, opacities, features, tile_offsets, tile_ids, order,
                           starts, entries_of, width, height, alpha_max);
  const int64_t H = in.height, W = in.width;
  const Tensor last = dense_typed(last_, "last", at::kInt, means2d, "means2d", {in.I, H, W});
  const Tensor transmittance =
      dense(transmittance_, "transmittance", means2d, "means2d", {in.I, H, W});
  const Tensor g_out = dense(g_out_, "g_out", means2d, "means2d", {in.I, H, W, in.D});
  const Tensor g_transmittance =
      dense(g_transmittance_, "g_transmittance", means2d, "means2d", {in.I, H, W});
  Tensor g_means2d = at::empty_like(in.means2d), g_conics = at::empty_like(in.conics);
  Tensor g_opacities = at::empty_like(in.opacities), g_features = at::empty_like(in.features);
  Tensor g_absolute = at::empty({in.I, absgrad ? in.N : 0, 2}, in.means2d.options());
  Scratch scratch(in.means2d);
  dispatch(in.means2d, "means2d", [&](auto zero) {
    using T = decltype(zero);
    if (in.I * in.N == 0) return;
    CompositeBackwardArgs<T> args{};
    args.forward = in.args<T>();
    args.forward.transmittance = data<T>(transmittance);
    args.forward.last = data<int32_t>(last);
    args.order = data<int32_t>(in.order);
    args.starts = data<int64_t>(in.starts);
    args.entries_of = data<int32_t>(in.entries_of);
    args.g_out = data<T>(g_out);
    args.g_transmittance = data<T>(g_transmittance);
    args.g_means2d = data<T>(g_means2d);
    args.g_conics = data<T>(g_conics);
    args.g_opacities = data<T>(g_opacities);
    args.g_features = data<T>(g_features);
    args.g_absolute = data<T>(g_absolute);
    kernels_for<T>(in.means2d).composite_backward(args, context_for(in.means2d, scratch));
  });
  return {g_means2d, g_conics, g_opacities, g_features, g_absolute};
}

void define(torch::Library& m) {
  m.def(
      "splat_composite(Tensor means2d, Tensor conics, Tensor opacities, Tensor features, "
      "Tensor tile_offsets, Tensor tile_ids, Tensor order, Tensor starts, Tensor entries_of, "
      "int width, int height, float alpha_max, Tensor? absolute=None) "
      "-> (Tensor out, Tensor transmittance, Tensor last)");
  m.def(
      "splat_composite_backward(Tensor means2d, Tensor conics, Tensor opacities, "
      "Tensor features, Tensor tile_offsets, Tensor tile_ids, Tensor order, Tensor starts, "
      "Tensor entries_of, int width, int height, float alpha_max, Tensor transmittance, "
      "Tensor last, Tensor g_out, Tensor g_transmittance, bool absgrad=False) "
      "-> (Tensor g_means2d, Tensor g_conics, Tensor g_opacities, Tensor g_features, "
      "Tensor g_absolute)");
}

void implement(torch::Library& m) {
  m.impl("splat_composite", &splat_composite);
  m.impl("splat_composite_backward", &splat_composite_backward);
}

}  // namespace

PYEXT_OPS(define, implement)

}  // namespace pyext::splat
