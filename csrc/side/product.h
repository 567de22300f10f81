// The type that the vendor's library multiplies matrices in.
#pragma once

#include "core/half.h"

namespace pyext::side {

// What products of matrices of S come in. The vendor's bfloat16 units round once; on float16, which
// could overflow, products are made of float copies.
template <class S>
struct ProductOf {
  using type = Wide<S>;
};
template <>
struct ProductOf<BFloat16> {
  using type = BFloat16;
};
template <class S>
using Product = typename ProductOf<S>::type;

}  // namespace pyext::side
