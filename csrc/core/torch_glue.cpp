#include "core/torch_glue.h"

#include <algorithm>
#include <sstream>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(PYEXT_WITH_CUDA)
#include <c10/cuda/CUDAStream.h>
#endif

namespace pyext {

void check_shape(const at::Tensor& tensor, const char* name, at::IntArrayRef expected) {
  bool fits = tensor.dim() == int64_t(expected.size());
  for (int64_t i = 0; fits && i < tensor.dim(); ++i)
    fits = expected[i] < 0 || tensor.size(i) == expected[i];
  if (fits) return;
  std::ostringstream wanted;
  for (size_t i = 0; i < expected.size(); ++i) {
    wanted << (i ? ", " : "");
    if (expected[i] < 0)
      wanted << "any";
    else
      wanted << expected[i];
  }
  TORCH_CHECK_VALUE(false, name, ": expected shape [", wanted.str(), "], got ", tensor.sizes());
}

void check_dtype(const at::Tensor& tensor, const char* name, at::ScalarType expected) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == expected, name, ": expected dtype ", expected, ", got ",
                   tensor.scalar_type());
}

void check_device(const at::Tensor& tensor, const char* name, const at::Tensor& like,
                  const char* like_name) {
  TORCH_CHECK_VALUE(tensor.device() == like.device(), name, ": expected device ", like.device(),
                    " like ", like_name, ", got ", tensor.device());
}

void check_like(const at::Tensor& tensor, const char* name, const at::Tensor& like,
                const char* like_name) {
  check_device(tensor, name, like, like_name);
  TORCH_CHECK_TYPE(tensor.scalar_type() == like.scalar_type(), name, ": expected dtype ",
                   like.scalar_type(), " like ", like_name, ", got ", tensor.scalar_type());
}

at::Tensor dense(const std::optional<at::Tensor>& tensor, const char* name, const at::Tensor& like,
                 const char* like_name, at::IntArrayRef shape) {
  if (!tensor) return {};
  check_like(*tensor, name, like, like_name);
  check_shape(*tensor, name, shape);
  return tensor->contiguous();
}

at::Tensor dense_typed(const std::optional<at::Tensor>& tensor, const char* name,
                       at::ScalarType dtype, const at::Tensor& like, const char* like_name,
                       at::IntArrayRef shape) {
  if (!tensor) return {};
  check_dtype(*tensor, name, dtype);
  check_device(*tensor, name, like, like_name);
  check_shape(*tensor, name, shape);
  return tensor->contiguous();
}

at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  at::Tensor tensor = at::empty(sizes, options);
#if defined(__linux__)
  constexpr uintptr_t kHugePage = uintptr_t(2) << 20;
  if (tensor.is_cpu() && tensor.nbytes() >= 2 * kHugePage) {
    const auto begin = reinterpret_cast<uintptr_t>(tensor.data_ptr());
    const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
    const uintptr_t last = (begin + tensor.nbytes()) / kHugePage * kHugePage;
    // A wish: the kernel may refuse it, which changes no result.
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
  return tensor;
}

void* Scratch::allocate(void* self, int64_t bytes) {
  auto* scratch = static_cast<Scratch*>(self);
  const std::lock_guard<std::mutex> lock(scratch->mutex_);
  scratch->held_.push_back(empty({std::max<int64_t>(bytes, 1)}, scratch->options_));
  return scratch->held_.back().data_ptr();
}

void* current_stream(const at::Tensor& tensor) {
#if defined(PYEXT_WITH_CUDA)
  if (tensor.is_cuda()) return c10::cuda::getCurrentCUDAStream(tensor.get_device()).stream();
#endif
  (void)tensor;
  return nullptr;
}

}  // namespace pyext
