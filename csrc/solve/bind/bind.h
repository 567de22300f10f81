// What the bindings of the family `solve` share: the kernels for a tensor, and checked arguments.
#pragma once

#include "core/binding.h"
#include "solve/kernels.h"

namespace pyext::solve {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The kernels that run on the tensor's device.
const Backend& backend_for(const Tensor& tensor);

// Activations [..., width] as rows; `held` keeps a copy alive where strides demand one.
Rows rows_of(const Tensor& x, const char* name, int64_t width, Tensor& held);

// Weights and segments, checked: on the CPU their values, too. A device is not waited for.
class Counting {
 public:
  Counting(const OptionalTensor& row_weight, const OptionalTensor& seg, int64_t segments,
           int64_t rows, const Tensor& like, const char* like_name);
  Segments segments() const;
  const double* weight() const { return data<double>(weight_); }

 private:
  Tensor weight_, ends_;
  int64_t count_;
};

// Sums in float64 that are added to an accumulator: in place where it is one, else beside it.
class Accumulator {
 public:
  Accumulator(Tensor& target, const char* name, at::IntArrayRef shape, const Tensor& like,
              const char* like_name);
  double* values() const { return pointer<double>(sums_); }
  int64_t count() const { return target_.size(0); }
  void finish();  // after the kernel

 private:
  Tensor& target_;
  Tensor sums_;
};

}  // namespace pyext::solve
