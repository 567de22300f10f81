// Torch ops of the family `splat`: schemas, checks, and the call into a backend.
#include "core/isa.h"
#include "core/torch_glue.h"
#include "splat/kernels.h"

namespace pyext {

namespace baseline {
extern const splat::Backend splat_backend;
}
#if defined(PYEXT_X86)
namespace avx2 {
extern const splat::Backend splat_backend;
}
namespace avx512 {
extern const splat::Backend splat_backend;
}
#endif

}  // namespace pyext

#if defined(PYEXT_WITH_CUDA)
extern "C" const pyext::splat::Backend* pyext_splat_cuda();
#endif

namespace pyext::splat {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

const Backend& cpu_backend() {
  if (void* symbol = loaded_symbol("pyext_splat_cuda"))
    return *reinterpret_cast<const Backend* (*)()>(symbol)();
#if defined(PYEXT_X86)
  const std::string name = isa();
  if (name == "avx512") return avx512::splat_backend;
  if (name == "avx2") return avx2::splat_backend;
#endif
  return baseline::splat_backend;
}

const Backend& backend_for(const Tensor& tensor) {
#if defined(PYEXT_WITH_CUDA)
  if (tensor.is_cuda()) return *pyext_splat_cuda();
#endif
  return cpu_backend();
}

template <class T>
const Kernels<T>& kernels_for(const Tensor& tensor) {
  const Backend& backend = backend_for(tensor);
  if constexpr (std::is_same_v<T, double>) {
    TORCH_CHECK_TYPE(backend.f64, "means: float64 is computed on the CPU only, got ",
                     tensor.device());
    return *backend.f64;
  } else {
    return *backend.f32;
  }
}

// Runs body(T{}) for the tensor's floating-point type.
template <class Body>
void dispatch(const Tensor& tensor, const char* name, Body body) {
  const c10::OptionalDeviceGuard guard(tensor.device());
  if (tensor.scalar_type() == at::kFloat)
    body(float());
  else if (tensor.scalar_type() == at::kDouble)
    body(double());
  else
    TORCH_CHECK_TYPE(false, name, ": expected dtype float32 or float64, got ",
                     tensor.scalar_type());
}

Context context_for(const Tensor& tensor, Scratch& scratch) {
  return {current_stream(tensor), &scratch, &Scratch::allocate};
}

int32_t image_side(int64_t size, const char* name) {
  TORCH_CHECK_VALUE(size >= 1 && size <= (1 << 20), name, ": expected 1 to 1048576 pixels, got ",
                    size);
  return int32_t(size);
}

Tensor dense(const OptionalTensor& tensor, const char* name, const Tensor& like,
             const char* like_name, at::IntArrayRef shape) {
  if (!tensor) return {};
  check_like(*tensor, name, like, like_name);
  check_shape(*tensor, name, shape);
  return tensor->contiguous();
}

// The same for integers: indices, lists, radii.
Tensor dense_integers(const Tensor& tensor, const char* name, at::ScalarType type,
                      const Tensor& like, const char* like_name, at::IntArrayRef shape) {
  check_dtype(tensor, name, type);
  check_device(tensor, name, like, like_name);
  check_shape(tensor, name, shape);
  return tensor.contiguous();
}

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
    TORCH_CHECK_VALUE(B * C * N < (int64_t(1) << 31),
                      "means: expected fewer than 2^31 Gaussians "
                      "times cameras, got ",
                      B * C * N, "; pass fewer cameras in one call");
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
  ProjectArgs<T> args(int64_t width, int64_t height, double eps2d, double near_plane,
                      double far_plane, double radius_clip) const {
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
    a.near_plane = T(near_plane);
    a.far_plane = T(far_plane);
    a.radius_clip = T(radius_clip);
    return a;
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> splat_project(
    const Tensor& means, const OptionalTensor& covars, const OptionalTensor& quats,
    const OptionalTensor& scales, const OptionalTensor& opacities, const Tensor& viewmats,
    const Tensor& Ks, int64_t width, int64_t height, double eps2d, double near_plane,
    double far_plane, double radius_clip) {
  const ProjectInputs in(means, covars, quats, scales, opacities, viewmats, Ks);
  const auto options = in.means.options();
  Tensor radii = at::empty({in.B, in.C, in.N, 2}, options.dtype(at::kInt));
  Tensor means2d = at::empty({in.B, in.C, in.N, 2}, options);
  Tensor depths = at::empty({in.B, in.C, in.N}, options);
  Tensor conics = at::empty({in.B, in.C, in.N, 3}, options);
  Scratch scratch(in.means);
  dispatch(in.means, "means", [&](auto zero) {
    using T = decltype(zero);
    auto args = in.args<T>(width, height, eps2d, near_plane, far_plane, radius_clip);
    if (in.B * in.C * in.N == 0) return;
    args.radii = data<int32_t>(radii);
    args.means2d = data<T>(means2d);
    args.depths = data<T>(depths);
    args.conics = data<T>(conics);
    kernels_for<T>(in.means).project(args, context_for(in.means, scratch));
  });
  return {radii, means2d, depths, conics};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> splat_project_backward(
    const Tensor& means, const OptionalTensor& covars, const OptionalTensor& quats,
    const OptionalTensor& scales, const Tensor& viewmats, const Tensor& Ks, int64_t width,
    int64_t height, double eps2d, const Tensor& radii_, const Tensor& g_means2d_,
    const Tensor& g_depths_, const Tensor& g_conics_) {
  const ProjectInputs in(means, covars, quats, scales, std::nullopt, viewmats, Ks);
  const Tensor radii =
      dense_integers(radii_, "radii", at::kInt, means, "means", {in.B, in.C, in.N, 2});
  const Tensor g_means2d = dense(g_means2d_, "g_means2d", means, "means", {in.B, in.C, in.N, 2});
  const Tensor g_depths = dense(g_depths_, "g_depths", means, "means", {in.B, in.C, in.N});
  const Tensor g_conics = dense(g_conics_, "g_conics", means, "means", {in.B, in.C, in.N, 3});
  const auto options = in.means.options();
  const bool shape_given = in.covars.defined();
  Tensor g_means = at::zeros({in.B, in.N, 3}, options);
  Tensor g_covars = at::zeros({in.B, shape_given ? in.N : 0, 6}, options);
  Tensor g_quats = at::zeros({in.B, shape_given ? 0 : in.N, 4}, options);
  Tensor g_scales = at::zeros({in.B, shape_given ? 0 : in.N, 3}, options);
  Tensor g_viewmats = at::zeros({in.B, in.C, 4, 4}, options);
  Scratch scratch(in.means);
  dispatch(in.means, "means", [&](auto zero) {
    using T = decltype(zero);
    ProjectBackwardArgs<T> args{};
    args.forward = in.args<T>(width, height, eps2d, 0, 0, 0);
    if (in.B * in.C * in.N == 0) return;
    args.forward.radii = data<int32_t>(radii);
    args.g_means2d = data<T>(g_means2d);
    args.g_depths = data<T>(g_depths);
    args.g_conics = data<T>(g_conics);
    args.g_means = data<T>(g_means);
    args.g_covars = data<T>(g_covars);
    args.g_quats = data<T>(g_quats);
    args.g_scales = data<T>(g_scales);
    args.g_viewmats = data<T>(g_viewmats);
    kernels_for<T>(in.means).project_backward(args, context_for(in.means, scratch));
  });
  return {g_means, g_covars, g_quats, g_scales, g_viewmats};
}

int64_t tiles_of(int64_t images, int64_t width, int64_t height) {
  return images * ((width + kTile - 1) / kTile) * ((height + kTile - 1) / kTile);
}

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
    const Tensor& opacities_, int64_t width, int64_t height) {
  check_shape(means2d_, "means2d", {-1, -1, 2});
  const int64_t I = means2d_.size(0), N = means2d_.size(1);
  const Tensor means2d = means2d_.contiguous();
  const Tensor radii = dense_integers(radii_, "radii", at::kInt, means2d, "means2d", {I, N, 2});
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
                          data<int64_t>(tile_offsets),
                          data<int32_t>(order),
                          data<int64_t>(starts),
                          &lists,
                          &Lists::allocate};
    kernels_for<T>(means2d).bin(args, context_for(means2d, scratch));
  });
  return {tile_offsets, lists.tile_ids, order, starts, lists.entries_of};
}

// The inputs of the compositor, checked and contiguous.
struct CompositeInputs {
  int64_t I, N, D;
  int32_t width, height;
  Tensor means2d, conics, opacities, features, tile_offsets, tile_ids;

  CompositeInputs(const Tensor& means2d_, const Tensor& conics_, const Tensor& opacities_,
                  const Tensor& features_, const Tensor& tile_offsets_, const Tensor& tile_ids_,
                  int64_t width_, int64_t height_)
      : width(image_side(width_, "width")), height(image_side(height_, "height")) {
    check_shape(means2d_, "means2d", {-1, -1, 2});
    I = means2d_.size(0);
    N = means2d_.size(1);
    check_shape(features_, "features", {I, N, -1});
    D = features_.size(2);
    TORCH_CHECK_VALUE(D >= 1, "features: expected at least one channel, got ", features_.sizes());
    means2d = means2d_.contiguous();
    conics = dense(conics_, "conics", means2d, "means2d", {I, N, 3});
    opacities = dense(opacities_, "opacities", means2d, "means2d", {I, N});
    features = dense(features_, "features", means2d, "means2d", {I, N, D});
    tile_offsets = dense_integers(tile_offsets_, "tile_offsets", at::kLong, means2d, "means2d",
                                  {tiles_of(I, width, height) + 1});
    tile_ids = dense_integers(tile_ids_, "tile_ids", at::kInt, means2d, "means2d", {-1});
  }

  template <class T>
  CompositeArgs<T> args(double alpha_max) const {
    CompositeArgs<T> a{};
    a.images = I;
    a.gaussians = N;
    a.channels = D;
    a.means2d = data<T>(means2d);
    a.conics = data<T>(conics);
    a.opacities = data<T>(opacities);
    a.features = data<T>(features);
    a.tile_offsets = data<int64_t>(tile_offsets);
    a.tile_ids = data<int32_t>(tile_ids);
    a.entries = tile_ids.numel();
    a.width = width;
    a.height = height;
    a.alpha_max = T(alpha_max);
    return a;
  }
};

std::tuple<Tensor, Tensor, Tensor> splat_composite(const Tensor& means2d, const Tensor& conics,
                                                   const Tensor& opacities, const Tensor& features,
                                                   const Tensor& tile_offsets,
                                                   const Tensor& tile_ids, const Tensor& /*order*/,
                                                   const Tensor& /*starts*/,
                                                   const Tensor& /*entries_of*/, int64_t width,
                                                   int64_t height, double alpha_max) {
  const CompositeInputs in(means2d, conics, opacities, features, tile_offsets, tile_ids, width,
                           height);
  const auto options = in.means2d.options();
  Tensor out = at::empty({in.I, in.height, in.width, in.D}, options);
  Tensor transmittance = at::empty({in.I, in.height, in.width}, options);
  Tensor last = at::empty({in.I, in.height, in.width}, options.dtype(at::kInt));
  Scratch scratch(in.means2d);
  dispatch(in.means2d, "means2d", [&](auto zero) {
    using T = decltype(zero);
    if (in.I == 0) return;
    CompositeArgs<T> args = in.args<T>(alpha_max);
    args.out = data<T>(out);
    args.transmittance = data<T>(transmittance);
    args.last = data<int32_t>(last);
    kernels_for<T>(in.means2d).composite(args, context_for(in.means2d, scratch));
  });
  return {out, transmittance, last};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> splat_composite_backward(
    const Tensor& means2d, const Tensor& conics, const Tensor& opacities, const Tensor& features,
    const Tensor& tile_offsets, const Tensor& tile_ids, const Tensor& order_, const Tensor& starts_,
    const Tensor& entries_of_, int64_t width, int64_t height, double alpha_max,
    const Tensor& transmittance_, const Tensor& last_, const Tensor& g_out_,
    const Tensor& g_transmittance_) {
  const CompositeInputs in(means2d, conics, opacities, features, tile_offsets, tile_ids, width,
                           height);
  const int64_t H = in.height, W = in.width;
  auto integers = [&](const Tensor& tensor, const char* name, at::ScalarType type,
                      at::IntArrayRef shape) {
    return dense_integers(tensor, name, type, means2d, "means2d", shape);
  };
  const Tensor order = integers(order_, "order", at::kInt, {in.I * in.N});
  const Tensor starts = integers(starts_, "starts", at::kLong, {in.I * in.N + 1});
  const Tensor entries_of = integers(entries_of_, "entries_of", at::kInt, {in.tile_ids.numel()});
  const Tensor last = integers(last_, "last", at::kInt, {in.I, H, W});
  const Tensor transmittance =
      dense(transmittance_, "transmittance", means2d, "means2d", {in.I, H, W});
  const Tensor g_out = dense(g_out_, "g_out", means2d, "means2d", {in.I, H, W, in.D});
  const Tensor g_transmittance =
      dense(g_transmittance_, "g_transmittance", means2d, "means2d", {in.I, H, W});
  Tensor g_means2d = at::empty_like(in.means2d), g_conics = at::empty_like(in.conics);
  Tensor g_opacities = at::empty_like(in.opacities), g_features = at::empty_like(in.features);
  Scratch scratch(in.means2d);
  dispatch(in.means2d, "means2d", [&](auto zero) {
    using T = decltype(zero);
    if (in.I * in.N == 0) return;
    CompositeBackwardArgs<T> args{};
    args.forward = in.args<T>(alpha_max);
    args.forward.transmittance = data<T>(transmittance);
    args.forward.last = data<int32_t>(last);
    args.order = data<int32_t>(order);
    args.starts = data<int64_t>(starts);
    args.entries_of = data<int32_t>(entries_of);
    args.g_out = data<T>(g_out);
    args.g_transmittance = data<T>(g_transmittance);
    args.g_means2d = data<T>(g_means2d);
    args.g_conics = data<T>(g_conics);
    args.g_opacities = data<T>(g_opacities);
    args.g_features = data<T>(g_features);
    kernels_for<T>(in.means2d).composite_backward(args, context_for(in.means2d, scratch));
  });
  return {g_means2d, g_conics, g_opacities, g_features};
}

void implement(torch::Library& m) {
  m.impl("splat_project", &splat_project);
  m.impl("splat_project_backward", &splat_project_backward);
  m.impl("splat_bin", &splat_bin);
  m.impl("splat_composite", &splat_composite);
  m.impl("splat_composite_backward", &splat_composite_backward);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pyext, m) {
  m.def(
      "splat_project(Tensor means, Tensor? covars, Tensor? quats, Tensor? scales, "
      "Tensor? opacities, Tensor viewmats, Tensor Ks, int width, int height, float eps2d, "
      "float near_plane, float far_plane, float radius_clip) "
      "-> (Tensor radii, Tensor means2d, Tensor depths, Tensor conics)");
  m.def(
      "splat_project_backward(Tensor means, Tensor? covars, Tensor? quats, Tensor? scales, "
      "Tensor viewmats, Tensor Ks, int width, int height, float eps2d, Tensor radii, "
      "Tensor g_means2d, Tensor g_depths, Tensor g_conics) "
      "-> (Tensor g_means, Tensor g_covars, Tensor g_quats, Tensor g_scales, Tensor g_viewmats)");
  m.def(
      "splat_bin(Tensor means2d, Tensor radii, Tensor depths, Tensor conics, Tensor opacities, "
      "int width, int height) "
      "-> (Tensor tile_offsets, Tensor tile_ids, Tensor order, Tensor starts, Tensor entries_of)");
  m.def(
      "splat_composite(Tensor means2d, Tensor conics, Tensor opacities, Tensor features, "
      "Tensor tile_offsets, Tensor tile_ids, Tensor order, Tensor starts, Tensor entries_of, "
      "int width, int height, float alpha_max) "
      "-> (Tensor out, Tensor transmittance, Tensor last)");
  m.def(
      "splat_composite_backward(Tensor means2d, Tensor conics, Tensor opacities, "
      "Tensor features, Tensor tile_offsets, Tensor tile_ids, Tensor order, Tensor starts, "
      "Tensor entries_of, int width, int height, float alpha_max, Tensor transmittance, "
      "Tensor last, Tensor g_out, Tensor g_transmittance) "
      "-> (Tensor g_means2d, Tensor g_conics, Tensor g_opacities, Tensor g_features)");
}

TORCH_LIBRARY_IMPL(pyext, CPU, m) { implement(m); }
#if defined(PYEXT_WITH_CUDA)
TORCH_LIBRARY_IMPL(pyext, CUDA, m) { implement(m); }
#endif

}  // namespace pyext::splat
