// Kernels know small numbers of channels when they are compiled; one more version takes any number.
#pragma once

#include <cstdint>
#include <type_traits>

namespace pyext::splat {

// Returns body(D) for D = channels from 1 to 4, and body(0) otherwise; D is an integral constant,
// and body returns the same type for each.
template <class Body>
auto with_channels(int64_t channels, Body body) {
  switch (channels) {
    case 1:
      return body(std::integral_constant<int, 1>());
    case 2:
      return body(std::integral_constant<int, 2>());
    case 3:
      return body(std::integral_constant<int, 3>());
    case 4:
      return body(std::integral_constant<int, 4>());
    default:
      return body(std::integral_constant<int, 0>());
  }
}

}  // namespace pyext::splat
