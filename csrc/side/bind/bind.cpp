// Which backend a tensor's kernels come from, and the checks all bindings share.
#include "side/bind/bind.h"

PYEXT_DEFINE_BACKEND_FOR(side)

namespace pyext::side {

bool is_device(const Tensor& tensor) {
  return !tensor.is_cpu() || loaded_symbol("pyext_side_cuda") != nullptr;
}

at::ScalarType wide_type(const Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

Tensor dense_wide(const OptionalTensor& tensor, const char* name, const Tensor& like,
                  const char* like_name, at::IntArrayRef shape) {
  if (!tensor) return {};
  check_device(*tensor, name, like, like_name);
  TORCH_CHECK_TYPE(at::isFloatingType(tensor->scalar_type()), name,
                   ": expected a floating-point dtype, got ", tensor->scalar_type());
  check_shape(*tensor, name, shape);
  return tensor->to(wide_type(like)).contiguous();
}

}  // namespace pyext::side
