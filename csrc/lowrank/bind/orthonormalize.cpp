// Torch ops: orthonormal rows that span those of a matrix, and the gradient.
#include <limits>

#include "lowrank/bind/bind.h"

namespace pyext::lowrank {
namespace {

// Runs body(S{}) for float or double.
template <class Body>
void dispatch_wide(const Tensor& tensor, Body body) {
  const c10::OptionalDeviceGuard guard(tensor.device());
  if (tensor.scalar_type() == at::kDouble)
    body(double());
  else
    body(float());
}

void check_matrices(const Tensor& x, const char* name) {
  check_shape(x, name, {-1, -1, -1});
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble, name,
                   ": expected dtype float32 or float64, got ", x.scalar_type());
  const int64_t rank = x.size(1);
  TORCH_CHECK_VALUE(rank >= 1 && rank <= kMaxRank / 2, name, ": expected a rank from 1 to ",
                    kMaxRank / 2, ", got ", rank);
  TORCH_CHECK_VALUE(rank <= x.size(2), name, ": rank ", rank, " is more than the width ",
                    x.size(2));
}

// Raises for the first matrix that was not decomposed. A device is not waited for.
template <class S>
void refuse_dependent(const Tensor& l) {
  if (!l.is_cpu()) return;
  const S* first = data<S>(l);
  for (int64_t e = 0; e < l.size(0); ++e)
    TORCH_CHECK_VALUE(first[e * l.stride(0)] == first[e * l.stride(0)], "X: matrix ", e,
                      " is not finite, or its rows are dependent");
}

std::tuple<Tensor, Tensor> lowrank_orthonormalize(const Tensor& x_) {
  check_matrices(x_, "X");
  const Tensor x = x_.contiguous();
  const int64_t count = x.size(0), rank = x.size(1), width = x.size(2);
  Tensor r = empty(x.sizes(), x.options()), l = at::empty({count, rank, rank}, x.options());
  Scratch scratch(x);
  dispatch_wide(x, [&](auto zero) {
    using S = decltype(zero);
    if (count == 0) return;
    const OrthonormalizeArgs<S> args{
        count,         rank,          width,        double(std::numeric_limits<S>::epsilon()),
        pointer<S>(x), pointer<S>(r), pointer<S>(l)};
    kernels_for<S>(x).orthonormalize(args, context_for(x, scratch));
    refuse_dependent<S>(l);
  });
  return {r, l};
}

Tensor lowrank_orthonormalize_backward(const Tensor& g_, const Tensor& r_, const Tensor& l_) {
  check_matrices(r_, "R");
  const Tensor r = r_.contiguous();
  const int64_t count = r.size(0), rank = r.size(1), width = r.size(2);
  const Tensor g = dense(g_, "g", r, "R", r.sizes());
  const Tensor l = dense(l_, "L", r, "R", {count, rank, rank});
  Tensor g_x = empty(r.sizes(), r.options());
  Scratch scratch(r);
  dispatch_wide(r, [&](auto zero) {
    using S = decltype(zero);
    if (count == 0) return;
    const OrthonormalizeBackwardArgs<S> args{
        count, rank, width, pointer<S>(g), pointer<S>(r), pointer<S>(l), pointer<S>(g_x)};
    kernels_for<S>(r).orthonormalize_backward(args, context_for(r, scratch));
  });
  return g_x;
}

void define(torch::Library& m) {
  m.def("lowrank_orthonormalize(Tensor X) -> (Tensor R, Tensor L)");
  m.def("lowrank_orthonormalize_backward(Tensor g, Tensor R, Tensor L) -> Tensor g_X");
}

void implement(torch::Library& m) {
  m.impl("lowrank_orthonormalize", &lowrank_orthonormalize);
  m.impl("lowrank_orthonormalize_backward", &lowrank_orthonormalize_backward);
}

}  // namespace

PYEXT_OPS(define, implement)

}  // namespace pyext::lowrank
