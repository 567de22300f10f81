// What the bindings of the family `splat` share: the backend of a tensor, and checks.
#pragma once

#include "core/binding.h"
#include "splat/kernels.h"

namespace pyext::splat {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The kernels that run on the tensor's device.
const Backend& backend_for(const Tensor& tensor);

template <class T>
const Kernels<T>& kernels_for(const Tensor& tensor) {
  return kernels_of<T>(backend_for(tensor), tensor);
}

// Runs body(T{}) for the tensor's floating-point type.
template <class Body>
void dispatch(const Tensor& tensor, const char* name, Body body) {
  const c10::OptionalDeviceGuard guard(tensor.device());
  if (tensor.scalar_type() == at::kFloat)
    body(float());
  else if (tensor.scalar_type() == at::kDouble)
    body(double());
  else
    TORCH_CHECK_TYPE(false, name, ": expected dtype float32 or float64, got ",
                     tensor.scalar_type());
}

// A side of the image as the kernels take it, checked.
int32_t image_side(int64_t size, const char* name);

// Number of tiles of so many images.
int64_t tiles_of(int64_t images, int64_t width, int64_t height);

// Lists usually come from splat_bin; those made by hand must not lead the kernels out of their
// arrays. On a CUDA device they are taken on trust: to look at them is to wait for the device.

// Raises unless every element of an int32 list is in [0, limit).
void check_indices(const Tensor& list, const char* name, int64_t limit);

// Raises unless the elements of an int64 list rise from 0 to `entries`.
void check_offsets(const Tensor& list, const char* name, int64_t entries);

// Raises unless flat ids of so many Gaussians in so many images fit in int32.
void check_flat_ids(const char* name, int64_t images, int64_t gaussians);

}  // namespace pyext::splat
