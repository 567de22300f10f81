// Torch ops: projection of Gaussians through cameras, and its gradient.
#include "splat/bind/bind.h"

namespace pyext::splat {
namespace {

// The inputs of the projection, checked and contiguous.
struct ProjectInputs {
  int64_t B, C, N;
  Tensor means, covars, quats, scales, opacities, viewmats, Ks;

  ProjectInputs(const Tensor& means_, const OptionalTensor& covars_, const OptionalTensor& quats_,
                const OptionalTensor& scales_, const OptionalTensor& opacities_,
                const Tensor& viewmats_, const Tensor& Ks_) {
    check_shape(means_, "means", {-1, -1, 3});
    B = means_.size(0);
    N = means_.size(1);
    check_shape(viewmats_, "viewmats", {B, -1, 4, 4});
    C = viewmats_.size(1);
    TORCH_CHECK_VALUE(covars_ || (quats_ && scales_),
                      "quats, scales: both are needed when covars is not given");
    check_flat_ids("means", B * C, N);
    means = means_.contiguous();
    viewmats = dense(viewmats_, "viewmats", means, "means", {B, C, 4, 4});
    Ks = dense(Ks_, "Ks", means, "means", {B, C, 3, 3});
    covars = dense(covars_, "covars", means, "means", {B, N, 6});
    if (!covars.defined()) {
      quats = dense(quats_, "quats", means, "means", {B, N, 4});
      scales = dense(scales_, "scales", means, "means", {B, N, 3});
    }
    opacities = dense(opacities_, "opacities", means, "means", {B, N});
  }

  template <class T>
  ProjectArgs<T> args(int64_t width, int64_t height, double eps2d, bool ortho, bool compensate,
                      double rho_min) const {
    TORCH_CHECK_VALUE(rho_min >= 0 && rho_min <= 1, "rho_min: expected 0 to 1, got ", rho_min);
    ProjectArgs<T> a{};
    a.batches = B;
    a.cameras = C;
    a.gaussians = N;
    a.means = data<T>(means);
    a.covars = data<T>(covars);
    a.quats = data<T>(quats);
    a.scales = data<T>(scales);
    a.opacities = data<T>(opacities);
    a.viewmats = data<T>(viewmats);
    a.Ks = data<T>(Ks);
    a.width = image_side(width, "width");
    a.height = image_side(height, "height");
    a.eps2d = T(eps2d);
    a.ortho = ortho;
    a.compensate = compensate;
    a.rho_min = T(rho_min);
    return a;
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> splat_project(
    const Tensor& means, const OptionalTensor& covars, const OptionalTensor& quats,
    const OptionalTensor& scales, const OptionalTensor& opacities, const Tensor& viewmats,
    const Tensor& Ks, int64_t width, int64_t height, double eps2d, double near_plane,
    double far_plane, double radius_clip, bool ortho, bool circle, bool compensate,
    double rho_min) {
  const ProjectInputs in(means, covars, quats, scales, opacities, viewmats, Ks);
  const auto options = in.means.options();
  Tensor radii = at::empty({in.B, in.C, in.N, 2}, options.dtype(at::kInt));
  Tensor means2d = at::empty({in.B, in.C, in.N, 2}, options);
  Tensor depths = at::empty({in.B, in.C, in.N}, options);
  Tensor conics = at::empty({in.B, in.C, in.N, 3}, options);
  Tensor compensations = at::empty({in.B, in.C, compensate ? in.N : 0}, options);
  Scratch scratch(in.means);
  dispatch(in.means, "means", [&](auto zero) {
    using T = decltype(zero);
    auto args = in.args<T>(width, height, eps2d, ortho, compensate, rho_min);
    args.near_plane = T(near_plane);
    args.far_plane = T(far_plane);
    args.radius_clip = T(radius_clip);
    args.circle = circle;
    if (in.B * in.C * in.N == 0) return;
    args.radii = data<int32_t>(radii);
    args.means2d = data<T>(means2d);
    args.depths = data<T>(depths);
    args.conics = data<T>(conics);
    args.compensations = data<T>(compensations);
    kernels_for<T>(in.means).project(args, context_for(in.means, scratch));
  });
  return {radii, means2d, depths, conics, compensations};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> splat_project_backward(
    const Tensor& means, const OptionalTensor& covars, const OptionalTensor& quats,
    const OptionalTensor& scales, const Tensor& viewmats, const Tensor& Ks, int64_t width,
    int64_t height, double eps2d, bool ortho, bool compensate, double rho_min, const Tensor& radii_,
    const Tensor& g_means2d_, const Tensor& g_depths_, const Tensor& g_conics_,
    const Tensor& g_compensations_) {
  const ProjectInputs in(means, covars, quats, scales, std::nullopt, viewmats, Ks);
  const Tensor radii =
      dense_typed(radii_, "radii", at::kInt, means, "means", {in.B, in.C, in.N, 2});
  const Tensor g_means2d = dense(g_means2d_, "g_means2d", means, "means", {in.B, in.C, in.N, 2});
  const Tensor g_depths = dense(g_depths_, "g_depths", means, "means", {in.B, in.C, in.N});
  const Tensor g_conics = dense(g_conics_, "g_conics", means, "means", {in.B, in.C, in.N, 3});
  const Tensor g_compensations = dense(g_compensations_, "g_compensations", means, "means",
                                       {in.B, in.C, compensate ? in.N : 0});
  const auto options = in.means.options();
  const bool shape_given = in.covars.defined();
  Tensor g_means = at::zeros({in.B, in.N, 3}, options);
  Tensor g_covars = at::zeros({in.B, shape_given ? in.N : 0, 6}, options);
  Tensor g_quats = at::zeros({in.B, shape_given ? 0 : in.N, 4}, options);
  Tensor g_scales = at::zeros({in.B, shape_given ? 0 : in.N, 3}, options);
  Tensor g_viewmats = at::zeros({in.B, in.C, 4, 4}, options);
  Tensor g_Ks = at::zeros({in.B, in.C, 3, 3}, options);
  Scratch scratch(in.means);
  dispatch(in.means, "means", [&](auto zero) {
    using T = decltype(zero);
    ProjectBackwardArgs<T> args{};
    args.forward = in.args<T>(width, height, eps2d, ortho, compensate, rho_min);
    if (in.B * in.C * in.N == 0) return;
    args.forward.radii = data<int32_t>(radii);
    args.g_means2d = data<T>(g_means2d);
    args.g_depths = data<T>(g_depths);
    args.g_conics = data<T>(g_conics);
    args.g_compensations = data<T>(g_compensations);
    args.g_means = data<T>(g_means);
    args.g_covars = data<T>(g_covars);
    args.g_quats = data<T>(g_quats);
    args.g_scales = data<T>(g_scales);
    args.g_viewmats = data<T>(g_viewmats);
    args.g_Ks = data<T>(g_Ks);
    kernels_for<T>(in.means).project_backward(args, context_for(in.means, scratch));
  });
  return {g_means, g_covars, g_quats, g_scales, g_viewmats, g_Ks};
}

void define(torch::Library& m) {
  m.def(
      "splat_project(Tensor means, Tensor? covars, Tensor? quats, Tensor? scales, "
      "Tensor? opacities, Tensor viewmats, Tensor Ks, int width, int height, float eps2d, "
      "float near_plane, float far_plane, float radius_clip, bool ortho, bool circle, "
      "bool compensate, float rho_min) "
      "-> (Tensor radii, Tensor means2d, Tensor depths, Tensor conics, Tensor compensations)");
  m.def(
      "splat_project_backward(Tensor means, Tensor? covars, Tensor? quats, Tensor? scales, "
      "Tensor viewmats, Tensor Ks, int width, int height, float eps2d, bool ortho, "
      "bool compensate, float rho_min, Tensor radii, Tensor g_means2d, Tensor g_depths, "
      "Tensor g_conics, Tensor g_compensations) "
      "-> (Tensor g_means, Tensor g_covars, Tensor g_quats, Tensor g_scales, Tensor g_viewmats, "
      "Tensor g_Ks)");
}

void implement(torch::Library& m) {
  m.impl("splat_project", &splat_project);
  m.impl("splat_project_backward", &splat_project_backward);
}

}  // namespace

PYEXT_OPS(define, implement)

}  // namespace pyext::splat
