#include "side/bind/products.h"

#include "side/bind/sums.h"

namespace pyext::side {

namespace {

template <class T>
Tensor copy_to(const Tensor& like, const std::vector<T>& values, at::ScalarType type) {
  const Tensor host = at::from_blob(const_cast<T*>(values.data()), {int64_t(values.size())}, type);
  return host.to(like.device(), type, false, true);
}

}  // namespace

Activation activation_of(c10::string_view name, const char* argument) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "gelu") return Activation::gelu;
  if (name == "quick_gelu") return Activation::quick_gelu;
  TORCH_CHECK_VALUE(false, argument,
                    ": expected one of 'none', 'relu', 'gelu', 'quick_gelu', got '", name, "'");
}

at::ScalarType product_type(const Tensor& x) {
  return x.scalar_type() == at::kHalf ? at::kFloat : x.scalar_type();
}

Tensor on_device_of(const Tensor& like, const std::vector<int64_t>& values) {
  return copy_to(like, values, at::kLong);
}
Tensor on_device_of(const Tensor& like, const std::vector<int32_t>& values) {
  return copy_to(like, values, at::kInt);
}

}  // namespace pyext::side
