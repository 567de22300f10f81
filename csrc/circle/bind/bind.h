// What the bindings of the family `circle` share: the kernels for a tensor.
#pragma once

#include "circle/kernels.h"
#include "core/binding.h"

namespace pyext::circle {

using at::Tensor;

// The kernels that run on the tensor's device.
const Backend& backend_for(const Tensor& tensor);

template <class S>
const Kernels<S>& kernels_for(const Tensor& tensor) {
  return kernels_of<S>(backend_for(tensor), tensor);
}

}  // namespace pyext::circle
