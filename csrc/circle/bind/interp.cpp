// Torch ops: points on the circles through pairs of vectors, and their gradients.
#include <cmath>

#include "circle/bind/bind.h"

namespace pyext::circle {
namespace {

Norm norm_of(c10::string_view name) {
  if (name == "paper") return Norm::paper;
  if (name == "unit") return Norm::unit;
  if (name == "gauss") return Norm::gauss;
  if (name == "lerp") return Norm::lerp;
  if (name == "slerp") return Norm::slerp;
  TORCH_CHECK_VALUE(false, "norm: expected paper, unit, gauss, lerp or slerp, got ", name);
}

// The inputs, checked and contiguous.
struct Circles {
  int64_t N, P, K, D;
  Norm norm;
  double min_sin;
  Tensor pool, pairs, angles;

  Circles(const Tensor& pool_, const Tensor& pairs_, const Tensor& angles_, c10::string_view norm_,
          double min_sin_)
      : norm(norm_of(norm_)), min_sin(min_sin_) {
    TORCH_CHECK_VALUE(pool_.dim() >= 2, "pool: expected shape [N, ...], got ", pool_.sizes());
    pool = pool_.contiguous();
    N = pool.size(0);
    D = N ? pool.numel() / N : c10::multiply_integers(pool.sizes().slice(1));
    pairs = dense_typed(pairs_, "pairs", at::kLong, pool, "pool", {-1, 2});
    P = pairs.size(0);
    check_device(angles_, "angles", pool, "pool");
    TORCH_CHECK_TYPE(angles_.scalar_type() == at::kFloat || angles_.scalar_type() == at::kDouble,
                     "angles: expected dtype float32 or float64, got ", angles_.scalar_type());
    check_shape(angles_, "angles", {P, -1});
    K = angles_.size(1);
    angles = angles_.to(at::kDouble).contiguous();
    TORCH_CHECK_VALUE(min_sin >= 0, "min_sin: expected at least 0, got ", min_sin);
    check_indices();
  }

  // On a CUDA device the kernels find wrong ones: to look at them is to wait for the device.
  void check_indices() const {
    if (!pairs.is_cpu()) return;
    const auto* index = data<int64_t>(pairs);
    for (int64_t i = 0; i < 2 * P; ++i)
      TORCH_CHECK_VALUE(index[i] >= 0 && index[i] < N, "pairs: expected indices from 0 to below ",
                        N, ", the rows of pool, got ", index[i], " in pair ", i / 2);
  }

  template <class S>
  InterpArgs<S> args(const Tensor& gram, const Tensor& status, const Tensor& z,
                     int64_t copies) const {
    return {N,
            P,
            K,
            D,
            copies,
            norm,
            min_sin,
            pointer<S>(pool),
            data<int64_t>(pairs),
            data<double>(angles),
            data<double>(gram),
            data<uint8_t>(status),
            pointer<S>(z)};
  }
};

std::string reason(uint8_t status) {
  switch (status) {
    case kZero:
      return "has a vector of length zero";
    case kParallel:
      return "is parallel";
    case kAntipodal:
      return "is antipodal";
    case kNotFinite:
      return "has a value that is not finite";
    default:
      return "has an index outside the pool";
  }
}

// Raises for the first pair that has no circle.
void refuse_degenerate(const Circles& in, const Tensor& gram_, const Tensor& status_) {
  const Tensor status = status_.cpu(), gram = gram_.cpu(), pairs = in.pairs.cpu();
  for (int64_t p = 0; p < in.P; ++p) {
    const uint8_t why = data<uint8_t>(status)[p];
    if (!why) continue;
    const auto* g = data<double>(gram) + 3 * p;
    const auto* pair = data<int64_t>(pairs) + 2 * p;
    std::ostringstream angle;
    if (why == kParallel || why == kAntipodal)
      angle << ": sin(alpha) = " << Angle({g[0], g[1], g[2]}).s
            << ", below min_sin = " << in.min_sin;
    TORCH_CHECK_VALUE(false, "pairs: pair ", p, " (", pair[0], ", ", pair[1], ") ", reason(why),
                      angle.str(), "; draw another pair, or set on_degenerate");
  }
}

std::vector<int64_t> shape_of_points(const Circles& in, const Tensor& pool, int64_t dup) {
  TORCH_CHECK_VALUE(dup == 1 || dup == 2, "dup: expected 1 or 2, got ", dup);
  std::vector<int64_t> shape{in.P, in.K};
  if (dup == 2) shape.insert(shape.begin(), 2);
  shape.insert(shape.end(), pool.sizes().begin() + 1, pool.sizes().end());
  return shape;
}

// Fills z; returns gram and status.
std::tuple<Tensor, Tensor> interp_to(const Circles& in, bool raise, int64_t dup, const Tensor& z) {
  Tensor gram = at::empty({in.P, 3}, in.pool.options().dtype(at::kDouble));
  Tensor status = at::empty({in.P}, in.pool.options().dtype(at::kByte));
  Scratch scratch(in.pool);
  dispatch_storage(in.pool, "pool", [&](auto zero) {
    using S = decltype(zero);
    if (in.P == 0) return;
    kernels_for<S>(in.pool).interp(in.args<S>(gram, status, z, dup), context_for(in.pool, scratch));
  });
  if (raise) refuse_degenerate(in, gram, status);
  return {gram, status};
}

std::tuple<Tensor, Tensor, Tensor> circle_interp(const Tensor& pool, const Tensor& pairs,
                                                 const Tensor& angles, c10::string_view norm,
                                                 double min_sin, bool raise, int64_t dup) {
  const Circles in(pool, pairs, angles, norm, min_sin);
  const Tensor z = empty(shape_of_points(in, pool, dup), in.pool.options());
  const auto [gram, status] = interp_to(in, raise, dup, z);
  return {z, gram, status};
}

std::tuple<Tensor, Tensor> circle_interp_(const Tensor& z, const Tensor& pool, const Tensor& pairs,
                                          const Tensor& angles, c10::string_view norm,
                                          double min_sin, bool raise, int64_t dup) {
  const Circles in(pool, pairs, angles, norm, min_sin);
  check_like(z, "out", in.pool, "pool");
  check_shape(z, "out", shape_of_points(in, pool, dup));
  TORCH_CHECK_VALUE(z.is_contiguous(), "out: expected a contiguous tensor");
  return interp_to(in, raise, dup, z);
}

std::tuple<Tensor, Tensor> circle_interp_backward(const Tensor& g_z_, const Tensor& pool,
                                                  const Tensor& pairs, const Tensor& angles,
                                                  const Tensor& gram_, const Tensor& status_,
                                                  c10::string_view norm, bool need_pool) {
  const Circles in(pool, pairs, angles, norm, 0.0);
  const Tensor gram = dense_typed(gram_, "gram", at::kDouble, in.pool, "pool", {in.P, 3});
  const Tensor status = dense_typed(status_, "status", at::kByte, in.pool, "pool", {in.P});
  check_like(g_z_, "g_z", in.pool, "pool");
  TORCH_CHECK_VALUE(g_z_.numel() == in.P * in.K * in.D, "g_z: expected ", in.P * in.K * in.D,
                    " values, got ", g_z_.numel());
  const Tensor g_z = g_z_.contiguous();
  Tensor g_angle = at::empty({in.P, in.K}, in.angles.options());
  Tensor g_pool = at::empty(need_pool ? in.pool.sizes() : at::IntArrayRef{0}, in.pool.options());
  Tensor entries, ends;
  if (need_pool) {
    const auto [rows, order] = at::sort(in.pairs.flatten(), std::optional<bool>(true), 0, false);
    entries = order.contiguous();
    ends = at::searchsorted(rows, at::arange(in.N + 1, in.pairs.options()));
  }
  Scratch scratch(in.pool);
  dispatch_storage(in.pool, "pool", [&](auto zero) {
    using S = decltype(zero);
    if (in.pool.numel() == 0) return;
    const InterpBackwardArgs<S> args{
        in.args<S>(gram, status, {}, 1), pointer<S>(g_z),     data<double>(g_angle),
        data<int64_t>(entries),          data<int64_t>(ends), pointer<S>(g_pool)};
    kernels_for<S>(in.pool).interp_backward(args, context_for(in.pool, scratch));
  });
  return {g_pool, g_angle.to(angles.scalar_type())};
}

void define(torch::Library& m) {
  m.def(
      "circle_interp(Tensor pool, Tensor pairs, Tensor angles, str norm, float min_sin, "
      "bool raise_degenerate, int dup) -> (Tensor z, Tensor gram, Tensor status)");
  m.def(
      "circle_interp_(Tensor(a!) z, Tensor pool, Tensor pairs, Tensor angles, str norm, "
      "float min_sin, bool raise_degenerate, int dup) -> (Tensor gram, Tensor status)");
  m.def(
      "circle_interp_backward(Tensor g_z, Tensor pool, Tensor pairs, Tensor angles, Tensor gram, "
      "Tensor status, str norm, bool need_pool) -> (Tensor g_pool, Tensor g_angles)");
}

void implement(torch::Library& m) {
  m.impl("circle_interp", &circle_interp);
  m.impl("circle_interp_", &circle_interp_);
  m.impl("circle_interp_backward", &circle_interp_backward);
}

}  // namespace

PYEXT_OPS(define, implement)

}  // namespace pyext::circle
