// Torch ops: colours from spherical harmonics, and their gradient.
#include "splat/sh.h"

#include "splat/bind/bind.h"

namespace pyext::splat {
namespace {

// The inputs, checked and contiguous.
struct ShInputs {
  int64_t degree, B, C, N, K, D;
  Tensor means, centres, coeffs, radii;

  ShInputs(int64_t degree_, const Tensor& means_, const Tensor& centres_, const Tensor& coeffs_,
           const OptionalTensor& radii_)
      : degree(degree_) {
    TORCH_CHECK_VALUE(degree >= 0 && degree <= kShDegreeMax, "degree: expected 0 to ", kShDegreeMax,
                      ", got ", degree);
    check_shape(means_, "means", {-1, -1, 3});
    B = means_.size(0);
    N = means_.size(1);
    check_shape(centres_, "centres", {B, -1, 3});
    C = centres_.size(1);
    check_shape(coeffs_, "coeffs", {B, -1, N, -1, -1});
    TORCH_CHECK_VALUE(coeffs_.size(1) == 1 || coeffs_.size(1) == C, "coeffs: expected 1 or ", C,
                      " cameras, got ", coeffs_.size(1));
    K = coeffs_.size(3);
    D = coeffs_.size(4);
    TORCH_CHECK_VALUE(K >= sh_bases_of(int(degree)), "coeffs: expected at least ",
                      sh_bases_of(int(degree)), " coefficients for degree ", degree, ", got ", K);
    TORCH_CHECK_VALUE(D >= 1, "coeffs: expected at least one channel, got ", D);
    check_flat_ids("means", B * C, N);
    means = means_.contiguous();
    centres = dense(centres_, "centres", means, "means", {B, C, 3});
    coeffs = dense(coeffs_, "coeffs", means, "means", coeffs_.sizes());
    if (radii_) radii = dense_typed(*radii_, "radii", at::kInt, means, "means", {B, C, N, 2});
  }

  bool empty() const { return B * C * N == 0; }

  template <class T>
  ShArgs<T> args() const {
    ShArgs<T> a{};
    a.batches = B;
    a.cameras = C;
    a.gaussians = N;
    a.channels = D;
    a.degree = int(degree);
    a.coefficients = K;
    a.shared = coeffs.size(1) == 1;
    a.means = data<T>(means);
    a.centres = data<T>(centres);
    a.coeffs = data<T>(coeffs);
    a.radii = data<int32_t>(radii);
    return a;
  }
};

Tensor splat_sh(int64_t degree, const Tensor& means, const Tensor& centres, const Tensor& coeffs,
                const OptionalTensor& radii) {
  const ShInputs in(degree, means, centres, coeffs, radii);
  Tensor colours = at::empty({in.B, in.C, in.N, in.D}, in.means.options());
  Scratch scratch(in.means);
  dispatch(in.means, "means", [&](auto zero) {
    using T = decltype(zero);
    if (in.empty()) return;
    auto args = in.args<T>();
    args.colours = data<T>(colours);
    kernels_for<T>(in.means).sh(args, context_for(in.means, scratch));
  });
  return colours;
}

std::tuple<Tensor, Tensor, Tensor> splat_sh_backward(int64_t degree, const Tensor& means,
                                                     const Tensor& centres, const Tensor& coeffs,
                                                     const OptionalTensor& radii,
                                                     const Tensor& g_colours_) {
  const ShInputs in(degree, means, centres, coeffs, radii);
  const Tensor g_colours = dense(g_colours_, "g_colours", means, "means", {in.B, in.C, in.N, in.D});
  const auto options = in.means.options();
  Tensor g_means = at::zeros({in.B, in.N, 3}, options);
  Tensor g_centres = at::zeros({in.B, in.C, 3}, options);
  // The kernels write all but the coefficients that the degree leaves out.
  const bool all_written = in.K == sh_bases_of(int(degree)) && !in.empty();
  Tensor g_coeffs =
      all_written ? at::empty(in.coeffs.sizes(), options) : at::zeros(in.coeffs.sizes(), options);
  Scratch scratch(in.means);
  dispatch(in.means, "means", [&](auto zero) {
    using T = decltype(zero);
    if (in.empty()) return;
    ShBackwardArgs<T> args{};
    args.forward = in.args<T>();
    args.g_colours = data<T>(g_colours);
    args.g_means = data<T>(g_means);
    args.g_centres = data<T>(g_centres);
    args.g_coeffs = data<T>(g_coeffs);
    kernels_for<T>(in.means).sh_backward(args, context_for(in.means, scratch));
  });
  return {g_means, g_centres, g_coeffs};
}

void define(torch::Library& m) {
  m.def(
      "splat_sh(int degree, Tensor means, Tensor centres, Tensor coeffs, Tensor? radii) "
      "-> Tensor colours");
  m.def(
      "splat_sh_backward(int degree, Tensor means, Tensor centres, Tensor coeffs, Tensor? radii, "
      "Tensor g_colours) -> (Tensor g_means, Tensor g_centres, Tensor g_coeffs)");
}

void implement(torch::Library& m) {
  m.impl("splat_sh", &splat_sh);
  m.impl("splat_sh_backward", &splat_sh_backward);
}

}  // namespace

PYEXT_OPS(define, implement)

}  // namespace pyext::splat
