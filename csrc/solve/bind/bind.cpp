// Which backend a tensor's kernels come from, and the arguments all bindings share.
#include "solve/bind/bind.h"

#include <ATen/core/dispatch/Dispatcher.h>

PYEXT_DEFINE_BACKEND_FOR(solve)

namespace pyext::solve {

Rows rows_of(const Tensor& x, const char* name, int64_t width, Tensor& held) {
  TORCH_CHECK_VALUE(x.dim() >= 1, name, ": expected shape [..., d], got []");
  TORCH_CHECK_VALUE(width < 0 || x.size(-1) == width, name, ": expected ", width,
                    " columns, got shape ", x.sizes());
  int64_t count = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) count *= x.size(i);
  held = x.reshape({count, x.size(-1)});
  if (held.size(1) > 1 && held.stride(1) != 1) held = held.contiguous();
  Storage type = Storage::f32;
  if (x.scalar_type() == at::kBFloat16)
    type = Storage::bf16;
  else if (x.scalar_type() == at::kHalf)
    type = Storage::f16;
  else if (x.scalar_type() == at::kDouble)
    type = Storage::f64;
  else
    TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat, name,
                     ": expected dtype float32, bfloat16, float16 or float64, got ",
                     x.scalar_type());
  return {count && x.size(-1) ? held.data_ptr() : nullptr, type, count, x.size(-1), held.stride(0)};
}

Counting::Counting(const OptionalTensor& row_weight, const OptionalTensor& seg, int64_t segments,
                   int64_t rows, const Tensor& like, const char* like_name)
    : count_(segments) {
  if (row_weight) {
    check_device(*row_weight, "row_weight", like, like_name);
    check_shape(*row_weight, "row_weight", {rows});
    const auto type = row_weight->scalar_type();
    TORCH_CHECK_TYPE(type == at::kBool || type == at::kFloat || type == at::kDouble,
                     "row_weight: expected dtype bool, float32 or float64, got ", type);
    weight_ = row_weight->to(at::kDouble).contiguous();
    const double* values = weight_.is_cpu() ? data<double>(weight_) : nullptr;
    for (int64_t i = 0; values && i < rows; ++i)
      TORCH_CHECK_VALUE(values[i] >= 0, "row_weight: expected no negative weight, got ", values[i],
                        " at row ", i);
  }
  TORCH_CHECK_VALUE(seg || segments == 1, "seg: expected the offsets of ", segments,
                    " segments, got none");
  ends_ = dense_typed(seg, "seg", at::kLong, like, like_name, {segments + 1});
  if (!ends_.defined() || !ends_.is_cpu()) return;
  const int64_t* ends = ends_.data_ptr<int64_t>();
  bool rising = ends[0] >= 0 && ends[segments] <= rows;
  for (int64_t s = 0; s < segments; ++s) rising = rising && ends[s] <= ends[s + 1];
  TORCH_CHECK_VALUE(rising, "seg: expected rising offsets within [0, ", rows, "], got ",
                    at::IntArrayRef(ends, segments + 1));
}

Segments Counting::segments() const { return {count_, data<int64_t>(ends_), weight()}; }

Accumulator::Accumulator(Tensor& target, const char* name, at::IntArrayRef shape,
                         const Tensor& like, const char* like_name)
    : target_(target) {
  const auto type = target.scalar_type();
  TORCH_CHECK_TYPE(type == at::kDouble || type == at::kFloat, name,
                   ": expected dtype float64 or float32, got ", type);
  check_device(target, name, like, like_name);
  check_shape(target, name, shape);
  const bool in_place = type == at::kDouble && target.is_contiguous();
  sums_ = in_place ? target : at::zeros(target.sizes(), target.options().dtype(at::kDouble));
}

void Accumulator::finish() {
  if (!sums_.is_same(target_)) target_.add_(sums_);
}

namespace {

// There are no gradients: what would need one is refused, not cut off from its graph.
void refuse_gradient(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                     torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  const size_t begin = stack->size() - arguments.size();
  for (size_t i = 0; at::GradMode::is_enabled() && i < arguments.size(); ++i) {
    const c10::IValue& value = (*stack)[begin + i];
    TORCH_CHECK_NOT_IMPLEMENTED(
        !value.isTensor() || !value.toTensor().defined() || !value.toTensor().requires_grad(),
        arguments[i].name(),
        ": this function has no gradient; detach it or call it under torch.no_grad()");
  }
  op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
}

}  // namespace

TORCH_LIBRARY_IMPL(pyext, Autograd, m) {
  for (const char* name :
       {"solve_gram_acc_", "solve_gram_proj_acc_", "solve_cross_acc_", "solve_sumsq_acc_",
        "solve_gram_combine", "solve_sym_fro_norm", "solve_spd_solve", "solve_spd_solve_",
        "solve_dual_solve", "solve_factored_svd", "solve_truncate_dense"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&refuse_gradient>());
}

}  // namespace pyext::solve
