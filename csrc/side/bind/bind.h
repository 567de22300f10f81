// What the bindings of the family `side` share: the kernels for a tensor, and checks.
#pragma once

#include "core/binding.h"
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
  return kernels_of<S>(backend_for(tensor), tensor);
}

// The type that sums over values of the tensor's type have: float32, or float64 for float64.
at::ScalarType wide_type(const Tensor& tensor);

// `dense` for a parameter or a sum that may have another floating-point type: it is returned in
// wide_type(like).
Tensor dense_wide(const OptionalTensor& tensor, const char* name, const Tensor& like,
                  const char* like_name, at::IntArrayRef shape);

}  // namespace pyext::side
