// Torch ops: Gram and cross-Gram matrices, projections and energies of rows that stream by.
#include "solve/bind/bind.h"

namespace pyext::solve {
namespace {

// The type that rows are multiplied in, checked.
Storage products_of(at::ScalarType products, const Rows& rows, const char* name) {
  TORCH_CHECK_TYPE(products == at::kDouble || products == at::kFloat,
                   "products: expected float64 or float32, got ", products);
  TORCH_CHECK_TYPE(products == at::kDouble || rows.type != Storage::f64,
                   "products: expected float64 for ", name, " in float64, got float32");
  return products == at::kDouble ? Storage::f64 : Storage::f32;
}

void gram_rows(Tensor& gram, const Tensor& x, const Rows& rows, const Counting& counting,
               at::ScalarType products) {
  const Storage type = products_of(products, rows, "x");
  Accumulator sums(gram, "gram", {-1, rows.width, rows.width}, x, "x");
  if (rows.count == 0 || gram.numel() == 0) return;
  Scratch scratch(x);
  backend_for(x).gram({rows, counting.segments(), type, sums.values()}, context_for(x, scratch));
  sums.finish();
}

void solve_gram_acc_(Tensor& gram, const Tensor& x, const OptionalTensor& row_weight,
                     const OptionalTensor& seg, at::ScalarType products) {
  check_shape(gram, "gram", {-1, -1, -1});
  Tensor held;
  const Rows rows = rows_of(x, "x", -1, held);
  const c10::OptionalDeviceGuard guard(x.device());
  gram_rows(gram, x, rows, {row_weight, seg, gram.size(0), rows.count, x, "x"}, products);
}

Tensor solve_gram_proj_acc_(Tensor& gram, const Tensor& x, const Tensor& a_stack,
                            const OptionalTensor& row_weight, const OptionalTensor& seg,
                            at::ScalarType products) {
  check_shape(gram, "gram", {-1, -1, -1});
  Tensor held;
  const Rows rows = rows_of(x, "x", -1, held);
  check_shape(a_stack, "a_stack", {-1, rows.width});
  check_device(a_stack, "a_stack", x, "x");
  TORCH_CHECK_TYPE(a_stack.scalar_type() == x.scalar_type() || a_stack.scalar_type() == at::kFloat,
                   "a_stack: expected dtype ", x.scalar_type(), " or Float, got ",
                   a_stack.scalar_type());
  const c10::OptionalDeviceGuard guard(x.device());
  const Counting counting(row_weight, seg, gram.size(0), rows.count, x, "x");
  gram_rows(gram, x, rows, counting, products);
  const Tensor a = a_stack.to(at::kDouble).contiguous();
  const bool wide = x.scalar_type() == at::kDouble;
  Tensor h = at::zeros({rows.count, a.size(0)}, x.options().dtype(wide ? at::kDouble : at::kFloat));
  if (h.numel() == 0 || rows.width == 0) return h;
  Scratch scratch(x);
  backend_for(x).project({rows, counting.weight(), a.size(0), pointer<double>(a),
                          wide ? nullptr : pointer<float>(h), wide ? pointer<double>(h) : nullptr},
                         context_for(x, scratch));
  return h;
}

void solve_cross_acc_(Tensor& cross, const Tensor& left_, const Tensor& right_,
                      const OptionalTensor& row_weight, const OptionalTensor& seg,
                      at::ScalarType products) {
  check_shape(cross, "cross", {-1, -1, -1});
  Tensor held_left, held_right;
  const Rows left = rows_of(left_, "left", -1, held_left);
  const Rows right = rows_of(right_, "right", -1, held_right);
  TORCH_CHECK_VALUE(left.count == right.count, "left: expected ", right.count,
                    " rows as right, got ", left.count);
  check_device(left_, "left", right_, "right");
  products_of(products, left, "left");
  const Storage type = products_of(products, right, "right");
  const c10::OptionalDeviceGuard guard(right_.device());
  const Counting counting(row_weight, seg, cross.size(0), right.count, right_, "right");
  Accumulator sums(cross, "cross", {-1, left.width, right.width}, right_, "right");
  if (right.count == 0 || cross.numel() == 0) return;
  Scratch scratch(right_);
  backend_for(right_).cross({left, right, counting.segments(), type, sums.values()},
                            context_for(right_, scratch));
  sums.finish();
}

void solve_sumsq_acc_(Tensor& out, const Tensor& y, const OptionalTensor& bias_,
                      const OptionalTensor& row_weight, const OptionalTensor& seg) {
  check_dtype(out, "out", at::kDouble);
  check_shape(out, "out", {-1});
  Tensor held;
  const Rows rows = rows_of(y, "y", -1, held);
  const c10::OptionalDeviceGuard guard(y.device());
  Tensor bias;
  if (bias_) {
    check_shape(*bias_, "bias", {rows.width});
    check_device(*bias_, "bias", y, "y");
    bias = bias_->to(at::kDouble).contiguous();
  }
  const Counting counting(row_weight, seg, out.size(0), rows.count, y, "y");
  Accumulator sums(out, "out", {-1}, y, "y");
  if (rows.count == 0 || rows.width == 0 || out.numel() == 0) return;
  Scratch scratch(y);
  backend_for(y).sumsq({rows, data<double>(bias), counting.segments(), sums.values()},
                       context_for(y, scratch));
  sums.finish();
}

// Matrices in float64, contiguous and square.
Tensor squares(const Tensor& grams) {
  check_shape(grams, "grams", {-1, -1, -1});
  check_shape(grams, "grams", {-1, grams.size(1), grams.size(1)});
  TORCH_CHECK_TYPE(grams.scalar_type() == at::kDouble || grams.scalar_type() == at::kFloat,
                   "grams: expected dtype float64 or float32, got ", grams.scalar_type());
  return grams.to(at::kDouble).contiguous();
}

// Raises where a value is out of its range; on a device, where to look is to wait, it does not.
void check_values(const Tensor& values, const char* name, bool zero, const char* wanted) {
  const double* x = values.is_cpu() ? data<double>(values) : nullptr;
  for (int64_t i = 0; x && i < values.numel(); ++i)
    TORCH_CHECK_VALUE(x[i] > 0 || (zero && x[i] == 0), name, ": expected ", wanted, ", got ", x[i],
                      " at [", i / values.size(1), ", ", i % values.size(1), "]");
}

Tensor solve_gram_combine(const Tensor& grams_, const Tensor& lam_, const Tensor& gamma_) {
  const Tensor grams = squares(grams_);
  const int64_t count = grams.size(0), d = grams.size(1);
  const Tensor lam = dense_typed(lam_, "lam", at::kDouble, grams, "grams", {-1, count});
  const int64_t modules = lam.size(0);
  const Tensor gamma = dense_typed(gamma_, "gamma", at::kDouble, grams, "grams", {modules, count});
  check_values(lam, "lam", false, "positive values");
  check_values(gamma, "gamma", true, "no negative value");
  const c10::OptionalDeviceGuard guard(grams.device());
  Tensor out = empty({modules, d, d}, grams.options());
  Scratch scratch(grams);
  if (out.numel())
    backend_for(grams).combine({modules, count, d, pointer<double>(grams), pointer<double>(lam),
                                pointer<double>(gamma), pointer<double>(out)},
                               context_for(grams, scratch));
  return out.to(grams_.scalar_type());
}

Tensor solve_sym_fro_norm(const Tensor& grams_) {
  const Tensor grams = squares(grams_);
  const c10::OptionalDeviceGuard guard(grams.device());
  Tensor norms = at::zeros({grams.size(0)}, grams.options());
  Scratch scratch(grams);
  if (grams.numel())
    backend_for(grams).norm(
        {grams.size(0), grams.size(1), pointer<double>(grams), pointer<double>(norms)},
        context_for(grams, scratch));
  return norms;
}

void define(torch::Library& m) {
  m.def(
      "solve_gram_acc_(Tensor(a!) gram, Tensor x, Tensor? row_weight=None, Tensor? seg=None, "
      "ScalarType products=float64) -> ()");
  m.def(
      "solve_gram_proj_acc_(Tensor(a!) gram, Tensor x, Tensor a_stack, Tensor? row_weight=None, "
      "Tensor? seg=None, ScalarType products=float64) -> Tensor h");
  m.def(
      "solve_cross_acc_(Tensor(a!) cross, Tensor left, Tensor right, Tensor? row_weight=None, "
      "Tensor? seg=None, ScalarType products=float64) -> ()");
  m.def(
      "solve_sumsq_acc_(Tensor(a!) out, Tensor y, Tensor? bias=None, Tensor? row_weight=None, "
      "Tensor? seg=None) -> ()");
  m.def("solve_gram_combine(Tensor grams, Tensor lam, Tensor gamma) -> Tensor");
  m.def("solve_sym_fro_norm(Tensor grams) -> Tensor");
}

void implement(torch::Library& m) {
  m.impl("solve_gram_acc_", &solve_gram_acc_);
  m.impl("solve_gram_proj_acc_", &solve_gram_proj_acc_);
  m.impl("solve_cross_acc_", &solve_cross_acc_);
  m.impl("solve_sumsq_acc_", &solve_sumsq_acc_);
  m.impl("solve_gram_combine", &solve_gram_combine);
  m.impl("solve_sym_fro_norm", &solve_sym_fro_norm);
}

}  // namespace

PYEXT_OPS(define, implement)

}  // namespace pyext::solve
