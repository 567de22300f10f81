// Torch op: solutions with symmetric positive definite matrices, and the ladder of what to do where
// Cholesky fails.
#include <limits>

#include "solve/bind/bind.h"

namespace pyext::solve {
namespace {

using Solved = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

constexpr int32_t kFloat32Gram = 256;  // of info
constexpr int64_t kProbes = 16;

void substitute(const Tensor& factor, const Tensor& info, const Tensor& z, const Tensor& half) {
  if (z.numel() == 0) return;
  Scratch scratch(z);
  backend_for(z).substitute({z.size(0), z.size(1), z.size(2), pointer<double>(factor),
                             pointer<int32_t>(info), pointer<double>(z), pointer<double>(half)},
                            context_for(z, scratch));
}

// Starting vectors of the estimate, each of 1-norm 1: equal entries, signs from a hash, and
// LAPACK's, which alternates and grows.
Tensor probes(int64_t d, const at::TensorOptions& options) {
  Tensor out = at::empty({kProbes, d}, at::kDouble);
  double* x = out.data_ptr<double>();
  for (int64_t i = 0; i < kProbes; ++i)
    for (int64_t j = 0; j < d; ++j) {
      uint64_t hash = (uint64_t(i) << 32 | uint64_t(j)) * 0x9e3779b97f4a7c15u;
      hash = (hash ^ hash >> 29) * 0xbf58476d1ce4e5b9u;
      const double growing = (1 + double(j) / double(d > 1 ? d - 1 : 1)) * (j % 2 ? -1 : 1) / 1.5;
      const double sign = i == 0 || hash >> 63 ? 1 : -1;
      x[i * d + j] = (i + 1 == kProbes ? growing : sign) / double(d);
    }
  return out.to(options.device());
}

// 1 / (|g|_1 |g^-1|_1) by Higham and Tisseur's block estimate of the second norm: from fixed
// vectors one step to unit vectors, sixteen at a time. It never exceeds that norm.
Tensor reciprocal_condition(const Tensor& factor, const Tensor& info, const Tensor& norm) {
  const int64_t count = factor.size(0), d = factor.size(1);
  if (d == 0) return at::ones_like(norm);
  Tensor x = probes(d, factor.options()).expand({count, kProbes, d}).contiguous();
  substitute(factor, info, x, {});
  Tensor largest = x.abs().sum(-1).amax(-1);
  x = at::where(x >= 0, 1.0, -1.0).to(at::kDouble).contiguous();
  substitute(factor, info, x, {});
  const Tensor best = x.abs().argmax(-1, true);
  x.zero_().scatter_(-1, best, 1.0);
  substitute(factor, info, x, {});
  largest = at::maximum(largest, x.abs().sum(-1).amax(-1));
  return at::where(info < 0, 0.0, 1 / (norm * largest)).to(at::kDouble);
}

// The rung below Cholesky: a pseudo-inverse; the factor is that of the matrix whose small
// eigenvalues are raised.
void by_eigenvalues(Tensor g, Tensor z, const Tensor& half, int64_t index) {
  const double floor_of_one = std::numeric_limits<double>::epsilon() * double(g.size(0));
  auto [values, vectors] = at::linalg_eigh(g, "L");
  const Tensor largest = values[-1];
  TORCH_CHECK_VALUE(largest.item<double>() > 0, "g[", index,
                    "]: expected a positive eigenvalue, got none");
  const Tensor floor = largest * floor_of_one;
  const Tensor inverse = at::where(values > floor, 1 / values, at::zeros_like(values));
  z.copy_(at::mm(at::mm(z, vectors) * inverse, vectors.t()));
  const Tensor root = at::maximum(values, floor).sqrt();
  const Tensor upper = std::get<1>(at::linalg_qr((vectors * root).t(), "r"));
  g.copy_(upper.t() * upper.diagonal().sign());
  if (half.defined()) half.copy_(at::mm(z, g));
}

struct Ladder {
  c10::string_view on_fail;
  double jitter0;
  int64_t max_tries;
  bool climbs() const { return on_fail == "ladder"; }
  bool raises() const { return on_fail != "nan"; }
};

// z, half, info, jitter, rcond; g [L, d, d] float64 and contiguous becomes its factors.
Solved solve_in_place(const Tensor& g, const Tensor& p, const Ladder& ladder, bool half) {
  const int64_t count = g.size(0), d = g.size(1);
  Tensor z = p.to(at::kDouble, false, true).contiguous();
  Tensor s = half ? at::zeros_like(z) : Tensor();
  Tensor info = at::zeros({count}, g.options().dtype(at::kInt));
  Tensor jitter = at::zeros({count}, g.options()), norm = at::ones({count}, g.options());
  if (count && d) {
    Scratch scratch(g);
    backend_for(g).factor(
        {count, d, pointer<double>(g), ladder.jitter0, ladder.climbs() ? ladder.max_tries : 0,
         pointer<int32_t>(info), pointer<double>(jitter), pointer<double>(norm)},
        context_for(g, scratch));
  }
  substitute(g, info, z, s);
  Tensor rcond = reciprocal_condition(g, info, norm);
  // Only here does the caller of a device wait: to be told, or to climb.
  const Tensor found = ladder.raises() ? info.cpu() : Tensor();
  for (int64_t i = 0; ladder.raises() && i < count; ++i) {
    const int32_t state = found.data_ptr<int32_t>()[i];
    TORCH_CHECK_VALUE(state != kNotFinite, "g[", i,
                      "]: expected finite entries, got NaN or infinity");
    TORCH_CHECK_VALUE(state >= 0 || ladder.climbs(), "g[", i, "]: not positive definite, pivot ",
                      -state, " of ", d, " failed");
    if (state >= 0) continue;
    by_eigenvalues(g[i], z[i], half ? s[i] : Tensor(), i);
    info[i].fill_(ladder.max_tries + 1);
    rcond[i].fill_(std::numeric_limits<double>::epsilon() * double(d));
  }
  if (!ladder.raises()) {
    const Tensor failed = info.lt(0).view({count, 1, 1});
    constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
    for (const Tensor& x : {g, z, s})
      if (x.defined()) x.masked_fill_(failed, kNan);
  }
  return {z, half ? s : at::empty({0}, g.options()), info, jitter, rcond};
}

void check(const Tensor& g, const Tensor& p, const Ladder& ladder) {
  check_shape(g, "g", {-1, -1, -1});
  check_shape(g, "g", {-1, g.size(1), g.size(1)});
  TORCH_CHECK_TYPE(g.scalar_type() == at::kDouble || g.scalar_type() == at::kFloat,
                   "g: expected dtype float64 or float32, got ", g.scalar_type());
  check_like(p, "p", g, "g");
  check_shape(p, "p", {g.size(0), -1, g.size(1)});
  TORCH_CHECK_VALUE(ladder.climbs() || ladder.on_fail == "raise" || ladder.on_fail == "nan",
                    "on_fail: expected one of 'ladder', 'raise', 'nan', got '", ladder.on_fail,
                    "'");
  TORCH_CHECK_VALUE(ladder.jitter0 > 0, "jitter0: expected a positive number, got ",
                    ladder.jitter0);
  TORCH_CHECK_VALUE(ladder.max_tries >= 0, "max_tries: expected at least 0, got ",
                    ladder.max_tries);
}

// `factor` [L, d, d] float64 and contiguous has the matrices, and then their factors.
Solved solve_factored(const Tensor& factor, const Tensor& g, const Tensor& p, const Ladder& ladder,
                      bool half) {
  const c10::OptionalDeviceGuard guard(g.device());
  auto [z, s, info, jitter, rcond] = solve_in_place(factor, p, ladder, half);
  const auto type = g.scalar_type();
  if (type == at::kFloat) info.add_(kFloat32Gram);
  return {z.to(type), s.to(type), info, jitter, rcond};
}

Solved solve_spd_solve(const Tensor& g, const Tensor& p, c10::string_view on_fail, double jitter0,
                       int64_t max_tries, bool half) {
  const Ladder ladder{on_fail, jitter0, max_tries};
  check(g, p, ladder);
  Tensor factor = empty(g.sizes(), g.options().dtype(at::kDouble));
  factor.copy_(g);
  return solve_factored(factor, g, p, ladder, half);
}

Solved solve_spd_solve_(Tensor& g, const Tensor& p, c10::string_view on_fail, double jitter0,
                        int64_t max_tries, bool half) {
  const Ladder ladder{on_fail, jitter0, max_tries};
  check(g, p, ladder);
  const Tensor factor = g.to(at::kDouble).contiguous();
  const Solved solved = solve_factored(factor, g, p, ladder, half);
  if (!factor.is_same(g)) g.copy_(factor);
  return solved;
}

void define(torch::Library& m) {
  m.def(
      "solve_spd_solve(Tensor g, Tensor p, str on_fail=\"ladder\", float jitter0=1e-14, int "
      "max_tries=3, bool half=False) -> (Tensor z, Tensor s, Tensor info, Tensor jitter, Tensor "
      "rcond)");
  m.def(
      "solve_spd_solve_(Tensor(a!) g, Tensor p, str on_fail=\"ladder\", float jitter0=1e-14, int "
      "max_tries=3, bool half=False) -> (Tensor z, Tensor s, Tensor info, Tensor jitter, Tensor "
      "rcond)");
}

void implement(torch::Library& m) {
  m.impl("solve_spd_solve", &solve_spd_solve);
  m.impl("solve_spd_solve_", &solve_spd_solve_);
}

}  // namespace

PYEXT_OPS(define, implement)

}  // namespace pyext::solve
