// Torch ops: one projection with all that surrounds it, and the gradient.
#include "side/bind/sums.h"

namespace pyext::side {
namespace {

// One element, as the kernels read it; undefined when not given.
Tensor scalar(const OptionalTensor& tensor, const char* name, const Tensor& like) {
  if (!tensor) return {};
  TORCH_CHECK_VALUE(tensor->numel() == 1, name, ": expected one element, got shape ",
                    tensor->sizes());
  return dense_wide(tensor->reshape({1}), name, like, "x", {1}).detach();
}

// What forward and backward have in common: arguments, checked.
struct Tail {
  int64_t R, d, E;
  Tensor x, w;  // [R, d], [E, d] as products take it
  Tensor bias, gamma, beta, residual, res_scale, out_scale;
  Activation pre_act, post_act;
  double eps;
  Dropout dropout;
  Blocks blocks;

  Tail(const Tensor& x_, const Tensor& w_, const OptionalTensor& bias_, c10::string_view pre_act_,
       c10::string_view post_act_, const OptionalTensor& gamma_, const OptionalTensor& beta_,
       double eps_, const OptionalTensor& residual_, const OptionalTensor& res_scale_,
       const OptionalTensor& out_scale_, double dropout_p, int64_t seed)
      : R(rows_of(x_)),
        d(x_.size(-1)),
        E(columns_of(w_)),
        x(x_.detach().contiguous().view({R, d})),
        w(matrix(dense(w_, "w", x_, "x", {E, d}))),
        bias(plain(dense(bias_, "bias", x_, "x", {E}))),
        gamma(plain(dense_wide(gamma_, "gamma", x_, "x", {E}))),
        beta(plain(dense_wide(beta_, "beta", x_, "x", {E}))),
        residual(plain(dense(residual_, "residual", x_, "x", shape_of(x_, E)))),
        res_scale(scalar(res_scale_, "res_scale", x_)),
        out_scale(scalar(out_scale_, "out_scale", x_)),
        pre_act(activation_of(pre_act_, "pre_act")),
        post_act(activation_of(post_act_, "post_act")),
        eps(eps_),
        dropout(dropout_of(dropout_p, seed)),
        blocks(x, R) {
    TORCH_CHECK_VALUE(gamma.defined() == beta.defined(),
                      "gamma: expected beta beside it, or neither");
    TORCH_CHECK_VALUE(!(res_scale.defined() && !residual.defined()),
                      "res_scale: expected residual beside it, got none");
  }

  at::TensorOptions wide() const { return x.options().dtype(wide_type(x)); }
  at::TensorOptions products() const { return x.options().dtype(product_type(x)); }
  bool norm() const { return gamma.defined(); }

  template <class S>
  UpArgs<S> args(int64_t block, const Tensor& product, const Tensor& xhat,
                 const Tensor& rstd) const {
    UpArgs<S> a{};
    a.channels = E;
    a.first = blocks.first(block);
    a.count = blocks.size(block);
    a.post_act = post_act;
    a.eps = eps;
    a.product = pointer<Product<S>>(product);
    a.bias = pointer<S>(bias);
    a.gamma = pointer<Wide<S>>(gamma);
    a.beta = pointer<Wide<S>>(beta);
    a.residual = pointer<S>(residual);
    a.res_scale = pointer<Wide<S>>(res_scale);
    a.out_scale = pointer<Wide<S>>(out_scale);
    a.dropout = dropout;
    a.xhat = norm() ? pointer<S>(xhat) : nullptr;
    a.rstd = norm() ? pointer<Wide<S>>(rstd) : nullptr;
    return a;
  }

  // The rows of a block as products take them; `copy` is memory for them.
  template <class S>
  Tensor rows(int64_t block, const Tensor& copy, const Context& context) const {
    const Tensor own = x.narrow(0, blocks.first(block), blocks.size(block));
    if (!copied(x, pre_act)) return own;
    activate_into<S>(copy, own, pre_act, context);
    return copy;
  }

  static std::vector<int64_t> shape_of(const Tensor& x, int64_t last) {
    std::vector<int64_t> shape = x.sizes().vec();
    shape.back() = last;
    return shape;
  }

 private:
  static int64_t rows_of(const Tensor& x) {
    TORCH_CHECK_VALUE(x.dim() >= 1, "x: expected shape [..., d], got []");
    return c10::multiply_integers(x.sizes().begin(), x.sizes().end() - 1);
  }
  static int64_t columns_of(const Tensor& w) {
    check_shape(w, "w", {-1, -1});
    return w.size(0);
  }
  static Tensor plain(const Tensor& tensor) { return tensor.defined() ? tensor.detach() : tensor; }
  static Dropout dropout_of(double p, int64_t seed) {
    TORCH_CHECK_VALUE(p >= 0 && p < 1, "dropout_p: expected at least 0 and below 1, got ", p);
    const auto bits = uint64_t(seed);
    return {{uint32_t(bits), uint32_t(bits >> 32)},
            uint64_t(p * 4294967296.0),
            p > 0 ? 1 / (1 - p) : 0.0};
  }
};

std::tuple<Tensor, Tensor, Tensor> side_up(
    const Tensor& x, const Tensor& w, const OptionalTensor& bias, c10::string_view pre_act,
    c10::string_view post_act, const OptionalTensor& gamma, const OptionalTensor& beta, double eps,
    const OptionalTensor& residual, const OptionalTensor& res_scale,
    const OptionalTensor& out_scale, double dropout_p, int64_t seed) {
  const Tail t(x, w, bias, pre_act, post_act, gamma, beta, eps, residual, res_scale, out_scale,
               dropout_p, seed);
  const std::vector<int64_t> shape = Tail::shape_of(x, t.E);
  Tensor y = empty(shape, t.x.options());
  Tensor xhat = t.norm() ? empty(shape, t.x.options()) : at::empty({0}, t.x.options());
  Tensor rstd =
      at::empty(t.norm() ? x.sizes().slice(0, x.dim() - 1) : at::IntArrayRef{0}, t.wide());
  Scratch scratch(t.x);
  dispatch_storage(t.x, "x", [&](auto zero) {
    using S = decltype(zero);
    const Context context = context_for(t.x, scratch);
    const bool copy = copied(t.x, t.pre_act);
    const BlockBuffers products(t.blocks, t.E, t.products());
    const BlockBuffers copies(t.blocks, copy ? t.d : 0, t.products());
    run_products(t.x, t.blocks.count, [&](int64_t block, int worker) {
      const int64_t rows = t.blocks.size(block);
      const Tensor own = copy ? copies.get(worker, rows, t.d) : Tensor();
      Tensor product = products.get(worker, rows, t.E);
      at::mm_out(product, t.rows<S>(block, own, context), t.w.t());
      UpArgs<S> args = t.args<S>(block, product, xhat, rstd);
      args.y = pointer<S>(y);
      kernels_for<S>(t.x).up(args, context);
    });
  });
  return {y, rstd, xhat};
}

// The gradients of one call. Those that do not exist are empty.
struct UpGradients {
  Tensor g_x, g_w, g_bias, g_gamma, g_beta, g_scales;

  UpGradients(const Tail& t, bool need_x, bool need_scales) {
    const auto sums = [&](bool exists) { return at::empty({exists ? t.E : 0}, t.wide()); };
    g_x = empty({need_x ? t.R : 0, t.d}, t.x.options());
    g_w = at::empty({t.E, t.d}, t.products());
    g_bias = sums(t.bias.defined());
    g_gamma = sums(t.norm());
    g_beta = sums(t.norm());
    g_scales = at::zeros({need_scales ? 2 : 0}, t.wide());
  }

  // What the activation was applied to is computed again unless the norm left it.
  template <class S>
  void run(const Tail& t, const Tensor& xhat, const Tensor& rstd, const Tensor& g_y,
           const Context& context) const {
    const bool copy = copied(t.x, t.pre_act), scales = g_scales.numel() > 0;
    const bool again = !t.norm() && (t.post_act != Activation::none || scales);
    const Tensor g_u = empty({t.R, t.E}, t.products());
    const Tensor copies = copy ? empty({t.R, t.d}, t.products()) : Tensor();
    const Tensor shares = at::empty({scales ? t.R : 0, 2}, t.wide());
    const BlockBuffers products(t.blocks, again ? t.E : 0, t.products());
    const BlockBuffers normed(t.blocks, t.norm() ? t.E : 0, t.x.options());
    const BlockBuffers g_rows(t.blocks, copy ? t.d : 0, t.products());
    const ColumnSums of_u(t.blocks, t.bias.defined() ? 1 : 0, t.E, t.x);
    const ColumnSums of_normed(t.blocks, t.norm() ? 1 : 0, t.E, t.x, true);
    run_products(t.x, t.blocks.count, [&](int64_t block, int worker) {
      const int64_t row = t.blocks.first(block), size = t.blocks.size(block);
      const Tensor own = copy ? copies.narrow(0, row, size) : Tensor();
      const Tensor x = t.rows<S>(block, own, context);
      Tensor product, g_normed, of_xhat;
      if (again) {
        product = products.get(worker, size, t.E);
        at::mm_out(product, x, t.w.t());
      }
      if (t.norm()) {
        g_normed = normed.get(worker, size, t.E);
        of_xhat = xhat.narrow(0, row, size);
      }
      const Tensor g = g_u.narrow(0, row, size);
      const UpBackwardArgs<S> args{t.args<S>(block, product, xhat, rstd), pointer<S>(g_y),
                                   pointer<Product<S>>(g), pointer<S>(g_normed),
                                   pointer<Wide<S>>(shares)};
      kernels_for<S>(t.x).up_backward(args, context);
      of_u.add<Product<S>>(0, block, g, {}, context);
      if (t.norm()) of_normed.add<S>(0, block, g_normed, of_xhat, context);
      if (g_x.numel())
        rows_gradient<S>(g_x.narrow(0, row, size), g, t.w, t.pre_act, t.x.narrow(0, row, size),
                         g_rows, worker, context);
    });
    const int64_t parts = weight_parts(t.x, t.E);
    run_products(t.x, parts, [&](int64_t part, int) {
      weight_gradient(g_w, g_u, copy ? copies : t.x, part, parts);
    });
    if (t.bias.defined()) of_u.join<S>(g_bias.view({1, t.E}), {}, context);
    if (t.norm()) of_normed.join<S>(g_beta.view({1, t.E}), g_gamma.view({1, t.E}), context);
    if (scales)
      join<S>(shares.view({1, t.R, 2}), all_spans(t.x, t.R), {}, g_scales.view({1, 1, 2}), context);
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> side_up_backward(
    const Tensor& x, const Tensor& w, const OptionalTensor& bias, c10::string_view pre_act,
    c10::string_view post_act, const OptionalTensor& gamma, const OptionalTensor& beta, double eps,
    const OptionalTensor& residual, const OptionalTensor& res_scale,
    const OptionalTensor& out_scale, double dropout_p, int64_t seed, const OptionalTensor& stat,
    const OptionalTensor& xhat_, const Tensor& g_y_, bool need_x, bool need_scales) {
  const Tail t(x, w, bias, pre_act, post_act, gamma, beta, eps, residual, res_scale, out_scale,
               dropout_p, seed);
  const Tensor g_y = dense(g_y_, "g_y", x, "x", Tail::shape_of(x, t.E));
  Tensor rstd, xhat;
  if (t.norm()) {
    TORCH_CHECK_VALUE(stat && xhat_, "stat: expected stat and xhat beside gamma, got none");
    rstd = dense_wide(stat, "stat", x, "x", x.sizes().slice(0, x.dim() - 1));
    xhat = dense(xhat_, "xhat", x, "x", Tail::shape_of(x, t.E)).view({t.R, t.E});
  }
  const UpGradients g(t, need_x, need_scales);
  Scratch scratch(t.x);
  dispatch_storage(t.x, "x", [&](auto zero) {
    g.run<decltype(zero)>(t, xhat, rstd, g_y, context_for(t.x, scratch));
  });
  const auto type = x.scalar_type();
  return {need_x ? g.g_x.view(x.sizes()) : at::empty({0}, x.options()),
          g.g_w.to(type),
          g.g_bias.to(type),
          g.g_gamma,
          g.g_beta,
          g.g_scales};
}

void define(torch::Library& m) {
  m.def(
      "side_up(Tensor x, Tensor w, Tensor? bias, str pre_act, str post_act, Tensor? gamma, "
      "Tensor? beta, float eps, Tensor? residual, Tensor? res_scale, Tensor? out_scale, "
      "float dropout_p, int seed) -> (Tensor y, Tensor stat, Tensor xhat)");
  m.def(
      "side_up_backward(Tensor x, Tensor w, Tensor? bias, str pre_act, str post_act, "
      "Tensor? gamma, Tensor? beta, float eps, Tensor? residual, Tensor? res_scale, "
      "Tensor? out_scale, float dropout_p, int seed, Tensor? stat, Tensor? xhat, Tensor g_y, "
      "bool need_x, bool need_scales) -> (Tensor g_x, Tensor g_w, Tensor g_bias, Tensor g_gamma, "
      "Tensor g_beta, Tensor g_scales)");
}

void implement(torch::Library& m) {
  m.impl("side_up", &side_up);
  m.impl("side_up_backward", &side_up_backward);
}

}  // namespace

PYEXT_OPS(define, implement)

}  // namespace pyext::side
