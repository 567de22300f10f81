// Which backend a tensor's kernels come from, and the checks all bindings share.
#include "side/bind/bind.h"

#include "core/isa.h"

namespace pyext {

namespace baseline {
extern const side::Backend side_backend;
}
#if defined(PYEXT_X86)
namespace avx2 {
extern const side::Backend side_backend;
}
namespace avx512 {
extern const side::Backend side_backend;
}
#endif

}  // namespace pyext

#if defined(PYEXT_WITH_CUDA)
extern "C" const pyext::side::Backend* pyext_side_cuda();
#endif

namespace pyext::side {

namespace {

const Backend& cpu_backend() {
  if (void* symbol = loaded_symbol("pyext_side_cuda"))
    return *reinterpret_cast<const Backend* (*)()>(symbol)();
#if defined(PYEXT_X86)
  const std::string name = isa();
  if (name == "avx512") return avx512::side_backend;
  if (name == "avx2") return avx2::side_backend;
#endif
  return baseline::side_backend;
}

}  // namespace

const Backend& backend_for(const Tensor& tensor) {
#if defined(PYEXT_WITH_CUDA)
  if (tensor.is_cuda()) return *pyext_side_cuda();
#endif
  (void)tensor;
  return cpu_backend();
}

bool is_device(const Tensor& tensor) {
  return !tensor.is_cpu() || loaded_symbol("pyext_side_cuda") != nullptr;
}

Context context_for(const Tensor& tensor, Scratch& scratch) {
  return {current_stream(tensor), &scratch, &Scratch::allocate};
}

at::ScalarType wide_type(const Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

Tensor dense(const OptionalTensor& tensor, const char* name, const Tensor& like,
             const char* like_name, at::IntArrayRef shape) {
  if (!tensor) return {};
  check_like(*tensor, name, like, like_name);
  check_shape(*tensor, name, shape);
  return tensor->contiguous();
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

Tensor dense_integers(const OptionalTensor& tensor, const char* name, at::ScalarType type,
                      const Tensor& like, const char* like_name, at::IntArrayRef shape) {
  if (!tensor) return {};
  check_dtype(*tensor, name, type);
  check_device(*tensor, name, like, like_name);
  check_shape(*tensor, name, shape);
  return tensor->contiguous();
}

}  // namespace pyext::side
