// What the bindings of every family share: which kernels a tensor's are, and how ops are
// registered.
#pragma once

#include "core/context.h"
#include "core/half.h"
#include "core/isa.h"
#include "core/torch_glue.h"

namespace pyext {

// A family's backends: one for each instruction set that was built, and CUDA's if it was.
template <class Backend>
struct Backends {
  const Backend *baseline, *avx2, *avx512, *avx512_bf16;
  const char* cuda_symbol;  // where a library in place of the CPU offers CUDA's
  const Backend* (*cuda)();

  const Backend& operator()(const at::Tensor& tensor) const {
    if (tensor.is_cuda() && cuda) return *cuda();
    if (void* symbol = loaded_symbol(cuda_symbol))
      return *reinterpret_cast<const Backend* (*)()>(symbol)();
    const std::string name = isa();
    if (name == "avx512_bf16") return *avx512_bf16;
    if (name == "avx512") return *avx512;
    return name == "avx2" ? *avx2 : *baseline;
  }
};

// A backend's kernels for the storage type S; it has a table for each type, f64 null where it has
// no double.
template <class S, class Backend>
const auto& kernels_of(const Backend& backend, const at::Tensor& tensor) {
  if constexpr (std::is_same_v<S, float>) return *backend.f32;
  if constexpr (std::is_same_v<S, BFloat16>) return *backend.bf16;
  if constexpr (std::is_same_v<S, Float16>) return *backend.f16;
  if constexpr (std::is_same_v<S, double>) {
    TORCH_CHECK_TYPE(backend.f64, "float64 is computed on the CPU only, got ", tensor.device());
    return *backend.f64;
  }
}

// Runs body(S{}) for the tensor's storage type, on its device.
template <class Body>
void dispatch_storage(const at::Tensor& tensor, const char* name, Body body) {
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

// The tensor's memory as values of S, a type that its dtype is known to be; null if it is
// undefined or empty.
template <class S>
S* pointer(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.numel() == 0) return nullptr;
  TORCH_INTERNAL_ASSERT(tensor.element_size() == int64_t(sizeof(S)));
  return static_cast<S*>(tensor.data_ptr());
}

inline Context context_for(const at::Tensor& tensor, Scratch& scratch) {
  return {current_stream(tensor), &scratch, &Scratch::allocate};
}

}  // namespace pyext

#if defined(PYEXT_X86)
#define PYEXT_DECLARE_X86_BACKENDS(family)       \
  namespace avx2 {                               \
  extern const family::Backend family##_backend; \
  }                                              \
  namespace avx512 {                             \
  extern const family::Backend family##_backend; \
  }                                              \
  namespace avx512_bf16 {                        \
  extern const family::Backend family##_backend; \
  }
#define PYEXT_CPU_BACKENDS(family)                                                 \
  &baseline::family##_backend, &avx2::family##_backend, &avx512::family##_backend, \
      &avx512_bf16::family##_backend
#else
#define PYEXT_DECLARE_X86_BACKENDS(family)
#define PYEXT_CPU_BACKENDS(family) &baseline::family##_backend, nullptr, nullptr, nullptr
#endif

#if defined(PYEXT_WITH_CUDA)
#define PYEXT_CUDA_BACKEND(family) &pyext_##family##_cuda
#define PYEXT_IMPLEMENT_ON_CUDA(implement) \
  TORCH_LIBRARY_IMPL(pyext, CUDA, m) { implement(m); }
#else
#define PYEXT_CUDA_BACKEND(family) nullptr
#define PYEXT_IMPLEMENT_ON_CUDA(implement)
#endif

// Defines pyext::family::backend_for(tensor): the kernels that run on the tensor's device.
#define PYEXT_DEFINE_BACKEND_FOR(family)                                                   \
  extern "C" const pyext::family::Backend* pyext_##family##_cuda();                        \
  namespace pyext {                                                                        \
  namespace baseline {                                                                     \
  extern const family::Backend family##_backend;                                           \
  }                                                                                        \
  PYEXT_DECLARE_X86_BACKENDS(family)                                                       \
  const family::Backend& family::backend_for(const at::Tensor& tensor) {                   \
    static const Backends<family::Backend> backends{                                       \
        PYEXT_CPU_BACKENDS(family), "pyext_" #family "_cuda", PYEXT_CUDA_BACKEND(family)}; \
    return backends(tensor);                                                               \
  }                                                                                        \
  }

// Defines schemas with `define(m)` and gives them `implement(m)` on every device there is.
#define PYEXT_OPS(define, implement)                  \
  TORCH_LIBRARY_FRAGMENT(pyext, m) { define(m); }     \
  TORCH_LIBRARY_IMPL(pyext, CPU, m) { implement(m); } \
  PYEXT_IMPLEMENT_ON_CUDA(implement)
