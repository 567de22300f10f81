#include "side/bind/products.h"

namespace pyext::side {

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

}  // namespace pyext::side
