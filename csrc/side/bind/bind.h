// What the bindings of the family `side` share: the kernels for a tensor, and checks.
#pragma once

#include "core/torch_glue.h"
#include "side/kernels.h"

namespace pyext::side {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The kernels that run on the tensor's device.
const Backend& backend_for(const Tensor& tensor);

// Whether the tensor's kernels are CUDA's, emulated or not. They take whole arrays; those of the
// CPU may be called from several threads at once, each with a part.
bool is_device(const Tensor& tensor);

template <class S>
const Kernels<S>& kernels_for(const Tensor& tensor) {
  const Backend& backend = backend_for(tensor);
  if constexpr (std::is_same_v<S, float>) return *backend.f32;
  if constexpr (std::is_same_v<S, BFloat16>) return *backend.bf16;
  if constexpr (std::is_same_v<S, Float16>) return *backend.f16;
  if constexpr (std::is_same_v<S, double>) {
    TORCH_CHECK_TYPE(backend.f64, "x: float64 is computed on the CPU only, got ", tensor.device());
    return *backend.f64;
  }
}

// Runs body(S{}) for the tensor's storage type.
template <class Body>
void dispatch(const Tensor& tensor, const char* name, Body body) {
  const c10::OptionalDeviceGuard guard(tensor.device());
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return body(float());
    case at::kBFloat16:
      return body(BFloat16());
    case at::kHalf:
      return body(Float16());
    case at::kDouble:
      return body(double());
    default:
      TORCH_CHECK_TYPE(false, name, ": expected dtype float32, bfloat16, float16 or float64, got ",
                       tensor.scalar_type());
  }
}

Context context_for(const Tensor& tensor, Scratch& scratch);

// The type that sums over values of the tensor's type have: float32, or float64 for float64.
at::ScalarType wide_type(const Tensor& tensor);

// The tensor's memory as values of S, a type that its dtype is known to be; null if it is
// undefined or empty.
template <class S>
S* pointer(const Tensor& tensor) {
  if (!tensor.defined() || tensor.numel() == 0) return nullptr;
  TORCH_INTERNAL_ASSERT(tensor.element_size() == int64_t(sizeof(S)));
  return static_cast<S*>(tensor.data_ptr());
}

// The tensor, checked against the shape and against dtype and device of `like`, contiguous;
// undefined when not given.
Tensor dense(const OptionalTensor& tensor, const char* name, const Tensor& like,
             const char* like_name, at::IntArrayRef shape);

// The same for a parameter or a sum that may have another floating-point type: it is returned in
// wide_type(like).
Tensor dense_wide(const OptionalTensor& tensor, const char* name, const Tensor& like,
                  const char* like_name, at::IntArrayRef shape);

// The same for integers and masks.
Tensor dense_integers(const OptionalTensor& tensor, const char* name, at::ScalarType type,
                      const Tensor& like, const char* like_name, at::IntArrayRef shape);

// Defines schemas with `define(m)` and gives them `implement(m)` on every device there is.
#if defined(PYEXT_WITH_CUDA)
#define PYEXT_SIDE_OPS(define, implement)             \
  TORCH_LIBRARY_FRAGMENT(pyext, m) { define(m); }     \
  TORCH_LIBRARY_IMPL(pyext, CPU, m) { implement(m); } \
  TORCH_LIBRARY_IMPL(pyext, CUDA, m) { implement(m); }
#else
#define PYEXT_SIDE_OPS(define, implement)         \
  TORCH_LIBRARY_FRAGMENT(pyext, m) { define(m); } \
  TORCH_LIBRARY_IMPL(pyext, CPU, m) { implement(m); }
#endif

}  // namespace pyext::side
