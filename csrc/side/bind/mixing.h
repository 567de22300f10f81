// What the bindings of the ops that mix taps share.
#pragma once

#include <c10/util/ParallelGuard.h>

#include "side/bind/bind.h"

namespace pyext::side {

// Activations h [B, K, N, d] of dtype and device of `like`, in any order of memory with a token's
// channels side by side.
inline Tensor activations(const Tensor& h, const Tensor& like, const char* like_name, int64_t B,
                          int64_t d) {
  check_like(h, "h", like, like_name);
  check_shape(h, "h", {B, -1, -1, d});
  return d == 1 || h.stride(3) == 1 ? h : h.contiguous();
}

// A tensor for gradients to h: without gaps, taps or tokens outermost as in h.
inline Tensor empty_gradient(const Tensor& h) {
  const int64_t B = h.size(0), K = h.size(1), N = h.size(2), d = h.size(3);
  if (h.stride(1) < h.stride(2)) return empty({B, N, K, d}, h.options()).transpose(1, 2);
  return empty({B, K, N, d}, h.options());
}

// A tensor for the gradient of an optional argument: empty if it was not given.
inline Tensor empty_where(const Tensor& given, at::IntArrayRef shape,
                          const at::TensorOptions& options) {
  return given.defined() ? at::empty(shape, options) : at::empty({0}, options);
}

// The gradient of a parameter in the parameter's own type; empty stays empty.
inline Tensor as_given(const Tensor& gradient, const OptionalTensor& parameter) {
  return parameter ? gradient.to(parameter->scalar_type()) : gradient;
}

// Sums along a dimension, in wide_type, in the same order on any number of threads.
inline Tensor ordered_sum(const Tensor& values, at::IntArrayRef dims) {
  const c10::ParallelGuard alone(true);
  return at::sum(values, dims, false, wide_type(values));
}

}  // namespace pyext::side
