// What the bindings of the family `lowrank` share: the kernels for a tensor, and factors.
#pragma once

#include "core/binding.h"
#include "lowrank/kernels.h"

namespace pyext::lowrank {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The kernels that run on the tensor's device.
const Backend& backend_for(const Tensor& tensor);

template <class S>
const Kernels<S>& kernels_for(const Tensor& tensor) {
  return kernels_of<S>(backend_for(tensor), tensor);
}

Activation activation_of(c10::string_view name);

// The type of factors and rank intermediates beside activations of this type.
inline at::ScalarType wide_type(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// A factor, which may have the type of `like` or be wide: checked, contiguous and wide; undefined
// when not given.
Tensor dense_wide(const OptionalTensor& factor, const char* name, const Tensor& like,
                  const char* like_name, at::IntArrayRef shape);

// E and r of a factor [E, r, width].
std::pair<int64_t, int64_t> rank_of(const Tensor& factor, const char* name, int64_t width);

// Integers of either width, as the kernels take them.
Tensor integers(const Tensor& given, const char* name, int64_t count, const Tensor& like,
                const char* like_name);

// Whoever has saved the tensor for a backward of theirs is told there that it was written.
void mark_written(const Tensor& tensor);

}  // namespace pyext::lowrank
