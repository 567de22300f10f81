// Which backend a tensor's kernels come from, and what factors must be.
#include "lowrank/bind/bind.h"

namespace pyext::lowrank {

Activation activation_of(c10::string_view name) {
  if (name == "identity") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "silu") return Activation::silu;
  if (name == "gelu") return Activation::gelu;
  if (name == "tanh") return Activation::tanh;
  TORCH_CHECK_VALUE(false, "act: expected identity, relu, silu, gelu or tanh, got ", name);
}

Tensor factor(const OptionalTensor& tensor, const char* name, const Tensor& like,
              const char* like_name, at::IntArrayRef shape) {
  if (!tensor) return {};
  check_shape(*tensor, name, shape);
  check_device(*tensor, name, like, like_name);
  const at::ScalarType wide = wide_type(like);
  TORCH_CHECK_TYPE(tensor->scalar_type() == like.scalar_type() || tensor->scalar_type() == wide,
                   name, ": expected dtype ", like.scalar_type(), " or ", wide, ", got ",
                   tensor->scalar_type());
  return tensor->to(wide).contiguous();
}

std::pair<int64_t, int64_t> rank_of(const Tensor& factor, const char* name, int64_t width) {
  check_shape(factor, name, {-1, -1, width});
  TORCH_CHECK_VALUE(factor.size(1) >= 1 && factor.size(1) <= kMostRank, name,
                    ": expected a rank from 1 to ", kMostRank, ", got ", factor.size(1));
  return {factor.size(0), factor.size(1)};
}

}  // namespace pyext::lowrank

PYEXT_DEFINE_BACKEND_FOR(lowrank)
