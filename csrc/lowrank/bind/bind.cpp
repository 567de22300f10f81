// Which backend a tensor's kernels come from, and the names of choices.
#include "lowrank/bind/bind.h"

PYEXT_DEFINE_BACKEND_FOR(lowrank)

namespace pyext::lowrank {

Activation activation_of(c10::string_view name) {
  if (name == "identity") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "silu") return Activation::silu;
  if (name == "gelu") return Activation::gelu;
  if (name == "tanh") return Activation::tanh;
  TORCH_CHECK_VALUE(false, "act: expected identity, relu, silu, gelu or tanh, got ", name);
}

Tensor dense_wide(const OptionalTensor& factor, const char* name, const Tensor& like,
                  const char* like_name, at::IntArrayRef shape) {
  if (!factor) return {};
  check_device(*factor, name, like, like_name);
  const auto wide = wide_type(like);
  TORCH_CHECK_TYPE(factor->scalar_type() == like.scalar_type() || factor->scalar_type() == wide,
                   name, ": expected dtype ", like.scalar_type(), " like ", like_name, ", or ",
                   wide, ", got ", factor->scalar_type());
  check_shape(*factor, name, shape);
  return factor->to(wide).contiguous();
}

}  // namespace pyext::lowrank
