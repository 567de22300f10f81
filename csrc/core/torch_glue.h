// Between torch tensors and the kernels' raw pointers: checks and scratch memory.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <mutex>
#include <optional>
#include <vector>

namespace pyext {

// Raises when the tensor's shape differs; -1 stands for any size. Messages name the argument.
void check_shape(const at::Tensor& tensor, const char* name, at::IntArrayRef expected);

// Raises when the dtype is not `expected`.
void check_dtype(const at::Tensor& tensor, const char* name, at::ScalarType expected);

// Raises when the device differs from that of `like`, called `like_name` in the message.
void check_device(const at::Tensor& tensor, const char* name, const at::Tensor& like,
                  const char* like_name);

// Raises when dtype or device differ from those of `like`, called `like_name` in the message.
void check_like(const at::Tensor& tensor, const char* name, const at::Tensor& like,
                const char* like_name);

// The tensor, checked against the shape and against dtype and device of `like`, contiguous;
// undefined when not given.
at::Tensor dense(const std::optional<at::Tensor>& tensor, const char* name, const at::Tensor& like,
                 const char* like_name, at::IntArrayRef shape);

// The same with a dtype of its own: integers, masks, sums.
at::Tensor dense_typed(const std::optional<at::Tensor>& tensor, const char* name,
                       at::ScalarType dtype, const at::Tensor& like, const char* like_name,
                       at::IntArrayRef shape);

// at::empty, large ones on huge pages where the system grants them. Memory that is new to the
// process is otherwise handed over 4 KB at a time, which takes longer than filling it.
at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options);

// Scratch buffers on one device, held until the call returns. Any thread may allocate.
class Scratch {
 public:
  explicit Scratch(const at::Tensor& like)
      : options_(like.options().dtype(at::kByte).requires_grad(false)) {}
  static void* allocate(void* self, int64_t bytes);

 private:
  at::TensorOptions options_;
  std::mutex mutex_;
  std::vector<at::Tensor> held_;
};

// The stream the tensor's device runs on now; null on the CPU.
void* current_stream(const at::Tensor& tensor);

template <class T>
T* data(const at::Tensor& tensor) {
  return tensor.defined() && tensor.numel() ? tensor.data_ptr<T>() : nullptr;
}

}  // namespace pyext
