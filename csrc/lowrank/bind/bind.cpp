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

std::pair<int64_t, int64_t> rank_of(const Tensor& factor, const char* name, int64_t width) {
  check_shape(factor, name, {-1, -1, width});
  TORCH_CHECK_VALUE(factor.size(1) >= 1 && factor.size(1) <= kMaxRank, name,
                    ": expected a rank from 1 to ", kMaxRank, ", got ", factor.size(1));
  return {factor.size(0), factor.size(1)};
}

Tensor integers(const Tensor& given, const char* name, int64_t count, const Tensor& like,
                const char* like_name) {
  const auto type = given.scalar_type();
  TORCH_CHECK_TYPE(type == at::kLong || type == at::kInt, name,
                   ": expected dtype int32 or int64, got ", type);
  check_device(given, name, like, like_name);
  check_shape(given, name, {count});
  return given.to(at::kLong).contiguous();
}

void mark_written(const Tensor& tensor) {
  if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

}  // namespace pyext::lowrank

PYEXT_DEFINE_BACKEND_FOR(lowrank)
