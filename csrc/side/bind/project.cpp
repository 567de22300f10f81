// Torch ops: K taps projected to one width, and the gradient.
#include "side/bind/sums.h"
#include "side/bind/taps.h"

namespace pyext::side {
namespace {

// What forward and backward have in common: arguments, checked.
struct Projection {
  Taps taps;
  std::vector<Tensor> bias;
  Activation pre_act, post_act;
  bool layer_norm, batch_norm;
  double eps;
  Tensor mask;  // [R] bool or undefined
  Blocks blocks;
  Spans spans;
  Tensor span_ends, sample_spans, samples;  // where the kernels can read them

  Projection(at::TensorList x, at::TensorList w, at::TensorList bias_, c10::string_view pre_act_,
             c10::string_view post_act_, c10::string_view norm, double eps_,
             const OptionalTensor& mask_, const OptionalTensor& cu_seqlens)
      : taps(x, w, cu_seqlens.has_value()),
        bias(list_of(bias_, "bias", bias_.empty() ? 0 : taps.K, taps.like(), {taps.d})),
        pre_act(activation_of(pre_act_, "pre_act")),
        post_act(activation_of(post_act_, "post_act")),
        layer_norm(norm == "layer"),
        batch_norm(norm == "batch"),
        eps(eps_),
        mask(dense_typed(mask_, "mask", at::kBool, taps.like(), "x", {taps.B, taps.N})),
        blocks(taps.like(), taps.R),
        spans(sample_ends(taps, cu_seqlens), span_step(), cu_seqlens.has_value()) {
    TORCH_CHECK_VALUE(layer_norm || batch_norm || norm == "none",
                      "norm: expected one of 'none', 'layer', 'batch', got '", norm, "'");
    TORCH_CHECK_VALUE(norm == "none" || post_act == Activation::none,
                      "post_act: expected 'none' with norm '", norm, "', got '", post_act_, "'");
    TORCH_CHECK_VALUE(!(mask.defined() && cu_seqlens),
                      "mask: a packed input has none; leave it out or cu_seqlens");
    span_ends = on_device_of(taps.like(), spans.ends);
    sample_spans = on_device_of(taps.like(), spans.samples);
    if (cu_seqlens) samples = on_device_of(taps.like(), spans.sample_of_row);
  }

  // The first span of a block, or the end of them all.
  int64_t first_span(int64_t block) const {
    return block == blocks.count ? spans.count() : spans.blocks[size_t(block)];
  }
  int64_t sample_count() const { return int64_t(spans.samples.size()) - 1; }
  at::TensorOptions wide() const { return taps.like().options().dtype(wide_type(taps.like())); }
  at::TensorOptions products() const {
    return taps.like().options().dtype(product_type(taps.like()));
  }

  // [B]: the weight of a row that counts in the mean of its sample.
  Tensor shares() const {
    if (mask.defined()) return mask.sum(1).clamp_min(1).to(wide()).reciprocal();
    std::vector<int64_t> rows;
    for (int64_t s = 0; s < sample_count(); ++s)
      rows.push_back(spans.ends[size_t(spans.samples[size_t(s) + 1])] -
                     spans.ends[size_t(spans.samples[size_t(s)])]);
    return on_device_of(taps.like(), rows).clamp_min(1).to(wide()).reciprocal();
  }

  // Rows of a block and tap; h and rstd may be undefined.
  template <class S>
  ProjectArgs<S> args(int64_t k, int64_t block, const Tensor& product, const Tensor& h,
                      const Tensor& rstd) const {
    ProjectArgs<S> a{};
    a.channels = taps.d;
    a.first = blocks.first(block);
    a.count = blocks.size(block);
    a.post_act = post_act;
    a.norm = layer_norm;
    a.eps = eps;
    a.product = pointer<Product<S>>(product);
    a.bias = bias.empty() ? nullptr : pointer<S>(bias[size_t(k)]);
    a.at = rows_in(h);
    a.h = tap_in<S>(h, k);
    a.stat_at = taps.stat_at();
    a.rstd = layer_norm ? pointer<Wide<S>>(rstd) + k * taps.N : nullptr;
    return a;
  }

  // The rows of a block as products take them; `copy` is memory for them.
  template <class S>
  Tensor rows(int64_t k, int64_t block, const Tensor& copy, const Context& context) const {
    const Tensor x = taps.x[size_t(k)].narrow(0, blocks.first(block), blocks.size(block));
    if (!copied(x, pre_act)) return x;
    activate_into<S>(copy, x, pre_act, context);
    return copy;
  }

 private:
  // On a device a span is what one block of threads adds up.
  int64_t span_step() const { return is_device(taps.like()) ? 64 : blocks.step; }
  static std::vector<int64_t> sample_ends(const Taps& taps, const OptionalTensor& cu_seqlens) {
    if (cu_seqlens) return sequence_ends(*cu_seqlens, taps.like(), taps.N);
    std::vector<int64_t> ends;
    for (int64_t b = 0; b <= taps.B; ++b) ends.push_back(b * taps.N);
    return ends;
  }
};

// Sums over spans of every tap's h, [K, spans, d].
struct HSums {
  Tensor sums, squares;

  HSums(const Projection& p, bool wanted) {
    if (wanted) sums = at::empty({p.taps.K, p.spans.count(), p.taps.d}, p.wide());
    if (wanted && p.batch_norm) squares = at::empty_like(sums);
  }

  // The spans [first, last) of one tap.
  template <class S>
  void add(const Projection& p, int64_t k, int64_t first, int64_t last, const Tensor& h,
           const Context& context) const {
    if (!sums.defined()) return;
    const int64_t at = (k * p.spans.count() + first) * p.taps.d;
    SpanSumsArgs<S> a{};
    a.channels = p.taps.d;
    a.spans = last - first;
    a.ends = pointer<int64_t>(p.span_ends) + first;
    a.at = rows_in(h);
    a.rows = tap_in<S>(h, k);
    a.mask = pointer<bool>(p.mask);
    a.sums = pointer<Wide<S>>(sums) + at;
    a.others = a.rows;
    a.products = squares.defined() ? pointer<Wide<S>>(squares) + at : nullptr;
    kernels_for<S>(h).span_sums(a, context);
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> side_project(
    at::TensorList x, at::TensorList w, at::TensorList bias, c10::string_view pre_act,
    c10::string_view post_act, c10::string_view norm, double eps, const OptionalTensor& mask,
    const OptionalTensor& cu_seqlens, c10::string_view layout, bool pool) {
  const Projection p(x, w, bias, pre_act, post_act, norm, eps, mask, cu_seqlens);
  const Taps& t = p.taps;
  const Tensor& like = t.like();
  // One that is not asked for is empty; no two outputs may share memory.
  const auto make = [&](bool wanted, at::IntArrayRef shape) {
    return at::empty(wanted ? shape : at::IntArrayRef{0}, p.wide());
  };
  const Tensor h = t.make_h(token_layout(layout)), rstd = make(p.layer_norm, {t.B, t.K, t.N});
  const Tensor means = make(pool, {p.sample_count(), t.K, t.d});
  const Tensor total = make(p.batch_norm, {t.K, t.d}), squares = make(p.batch_norm, {t.K, t.d});
  const HSums sums(p, pool || p.batch_norm);
  Scratch scratch(like);
  dispatch_storage(like, "x", [&](auto zero) {
    using S = decltype(zero);
    const Context context = context_for(like, scratch);
    const bool copy = copied(like, p.pre_act);
    const BlockBuffers products(p.blocks, t.d, p.products());
    const BlockBuffers copies(p.blocks, copy ? t.widest() : 0, p.products());
    run_products(like, t.K * p.blocks.count, [&](int64_t index, int worker) {
      const int64_t k = index % t.K, block = index / t.K, rows = p.blocks.size(block);
      const Tensor own = copy ? copies.get(worker, rows, t.width(k)) : Tensor();
      Tensor product = products.get(worker, rows, t.d);
      at::mm_out(product, p.rows<S>(k, block, own, context), t.w[size_t(k)].t());
      kernels_for<S>(like).project(p.args<S>(k, block, product, h, rstd), context);
      sums.add<S>(p, k, p.first_span(block), p.first_span(block + 1), h, context);
    });
    if (pool) join<S>(sums.sums, p.sample_spans, p.shares(), means, context);
    if (!p.batch_norm) return;
    const Tensor all = all_spans(like, p.spans.count());
    join<S>(sums.sums, all, {}, total, context);
    join<S>(sums.squares, all, {}, squares, context);
  });
  return {h, p.layer_norm ? rstd : total, squares, means};
}

// The gradients of one call, for some taps at a time: as many as fit into a buffer.
class ProjectBackward {
 public:
  Tensor g_h, h, rstd, g_total, g_squares, g_pool;  // of these the last three may be undefined
  std::vector<Tensor> g_w, g_x;                     // g_w in the type of products
  Tensor g_bias;                                    // [K, d] sums, or undefined

  ProjectBackward(const Projection& p, const c10::List<bool>& need_x) : p_(p) {
    const Taps& t = p.taps;
    for (int64_t k = 0; k < t.K; ++k) {
      g_w.push_back(at::empty({t.d, t.width(k)}, p.products()));
      g_x.push_back(at::empty({need_x[size_t(k)] ? t.R : 0, t.width(k)}, t.like().options()));
    }
    if (!p.bias.empty()) g_bias = at::empty({t.K, t.d}, p.wide());
  }

  template <class S>
  void run(const Context& context) {
    constexpr int64_t kBufferBytes = int64_t(64) << 20;
    const Taps& t = p_.taps;
    const int64_t row = t.d * int64_t(sizeof(Product<S>));
    const int64_t group =
        std::clamp<int64_t>(kBufferBytes / std::max<int64_t>(t.R * row, 1), 1, t.K);
    const Tensor g_u = empty({group, t.R, t.d}, p_.products());
    const bool copy = copied(t.like(), p_.pre_act);
    const Tensor copies = empty({copy ? group : 0, t.R * t.widest()}, p_.products());
    shares_ = p_.shares();
    for (int64_t first = 0; first < t.K; first += group) {
      const int64_t count = std::min(group, t.K - first);
      rows<S>(first, count, g_u, copies, context);
      weights<S>(first, count, g_u, copies);
    }
  }

 private:
  const Projection& p_;
  Tensor shares_;

  template <class S>
  void rows(int64_t first, int64_t count, const Tensor& g_u, const Tensor& copies,
            const Context& context) {
    const Taps& t = p_.taps;
    const bool again = !derivative_from_result(p_.post_act);
    const BlockBuffers products(p_.blocks, again ? t.d : 0, p_.products());
    const BlockBuffers g_rows(p_.blocks, copied(t.like(), p_.pre_act) ? t.widest() : 0,
                              p_.products());
    const ColumnSums sums(p_.blocks, g_bias.defined() ? count : 0, t.d, t.like());
    run_products(t.like(), count * p_.blocks.count, [&](int64_t index, int worker) {
      const int64_t i = index % count, k = first + i, block = index / count;
      const int64_t row = p_.blocks.first(block), size = p_.blocks.size(block);
      Tensor copy;
      if (copies.size(0))
        copy =
            copies[i].narrow(0, 0, t.R * t.width(k)).view({t.R, t.width(k)}).narrow(0, row, size);
      const Tensor x = p_.rows<S>(k, block, copy, context);
      Tensor product;
      if (again) {
        product = products.get(worker, size, t.d);
        at::mm_out(product, x, t.w[size_t(k)].t());
      }
      const Tensor g = g_u[i].narrow(0, row, size);
      kernels_for<S>(t.like()).project_backward(args<S>(k, block, product, g), context);
      sums.add<Product<S>>(i, block, g, {}, context);
      if (g_x[size_t(k)].numel())
        rows_gradient<S>(g_x[size_t(k)].narrow(0, row, size), g, t.w[size_t(k)], p_.pre_act,
                         t.x[size_t(k)].narrow(0, row, size), g_rows, worker, context);
    });
    if (g_bias.defined()) sums.join<S>(g_bias.narrow(0, first, count), {}, context);
  }

  template <class S>
  ProjectBackwardArgs<S> args(int64_t k, int64_t block, const Tensor& product,
                              const Tensor& g) const {
    const Taps& t = p_.taps;
    ProjectBackwardArgs<S> a{};
    a.forward = p_.args<S>(k, block, product, h, rstd);
    a.g_at = rows_in(g_h);
    a.g_h = tap_in<S>(g_h, k);
    a.samples = pointer<int32_t>(p_.samples);
    a.mask = pointer<bool>(p_.mask);
    a.share = pointer<Wide<S>>(shares_);
    if (g_pool.defined()) a.g_pool = pointer<Wide<S>>(g_pool) + k * t.d;
    a.g_pool_stride = t.K * t.d;
    if (g_total.defined()) a.g_sums = pointer<Wide<S>>(g_total) + k * t.d;
    if (g_squares.defined()) a.g_squares = pointer<Wide<S>>(g_squares) + k * t.d;
    a.g_product = pointer<Product<S>>(g);
    return a;
  }

  template <class S>
  void weights(int64_t first, int64_t count, const Tensor& g_u, const Tensor& copies) {
    const Taps& t = p_.taps;
    const int64_t parts = weight_parts(t.like(), t.d);
    run_products(t.like(), count * parts, [&](int64_t index, int) {
      const int64_t i = index % count, k = first + i;
      const Tensor x = copies.size(0)
                           ? copies[i].narrow(0, 0, t.R * t.width(k)).view({t.R, t.width(k)})
                           : t.x[size_t(k)];
      weight_gradient(g_w[size_t(k)], g_u[i], x, index / count, parts);
    });
  }
};

Tensor optional_sums(const OptionalTensor& tensor, const char* name, const Taps& taps,
                     at::IntArrayRef shape) {
  return dense_wide(tensor, name, taps.like(), "x[0]", shape);
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>> side_project_backward(
    at::TensorList x, at::TensorList w, at::TensorList bias, c10::string_view pre_act,
    c10::string_view post_act, c10::string_view norm, double eps, const OptionalTensor& mask,
    const OptionalTensor& cu_seqlens, const Tensor& h, const OptionalTensor& rstd,
    const Tensor& g_h, const OptionalTensor& g_sums, const OptionalTensor& g_squares,
    const OptionalTensor& g_pool, c10::List<bool> need_x) {
  const Projection p(x, w, bias, pre_act, post_act, norm, eps, mask, cu_seqlens);
  const Taps& t = p.taps;
  TORCH_CHECK_VALUE(int64_t(need_x.size()) == t.K, "need_x: expected ", t.K, " values, got ",
                    need_x.size());
  ProjectBackward b(p, need_x);
  b.g_h = t.as_h(g_h, "g_h");
  b.h = t.as_h(h, "h");
  TORCH_CHECK_VALUE(!p.layer_norm || rstd, "rstd: expected with norm 'layer', got none");
  if (p.layer_norm) b.rstd = optional_sums(rstd, "rstd", t, {t.B, t.K, t.N});
  b.g_total = optional_sums(g_sums, "g_sums", t, {t.K, t.d});
  b.g_squares = optional_sums(g_squares, "g_squares", t, {t.K, t.d});
  b.g_pool = optional_sums(g_pool, "g_pool", t, {p.sample_count(), t.K, t.d});
  Scratch scratch(t.like());
  dispatch_storage(t.like(), "x",
                   [&](auto zero) { b.run<decltype(zero)>(context_for(t.like(), scratch)); });
  std::vector<Tensor> g_x, g_w, g_bias;
  for (int64_t k = 0; k < t.K; ++k) {
    g_w.push_back(b.g_w[size_t(k)].to(t.like().scalar_type()));
    if (need_x[size_t(k)])
      g_x.push_back(b.g_x[size_t(k)].view(x[size_t(k)].sizes()));
    else
      g_x.push_back(at::empty({0}, t.like().options()));
    if (b.g_bias.defined()) g_bias.push_back(b.g_bias[k].to(t.like().scalar_type(), false, true));
  }
  return {g_x, g_w, g_bias};
}

void define(torch::Library& m) {
  m.def(
      "side_project(Tensor[] x, Tensor[] w, Tensor[] bias, str pre_act, str post_act, str norm, "
      "float eps, Tensor? mask, Tensor? cu_seqlens, str layout, bool pool) "
      "-> (Tensor h, Tensor stat0, Tensor stat1, Tensor pool)");
  m.def(
      "side_project_backward(Tensor[] x, Tensor[] w, Tensor[] bias, str pre_act, str post_act, "
      "str norm, float eps, Tensor? mask, Tensor? cu_seqlens, Tensor h, Tensor? rstd, "
      "Tensor g_h, Tensor? g_sums, Tensor? g_squares, Tensor? g_pool, bool[] need_x) "
      "-> (Tensor[] g_x, Tensor[] g_w, Tensor[] g_bias)");
}

void implement(torch::Library& m) {
  m.impl("side_project", &side_project);
  m.impl("side_project_backward", &side_project_backward);
}

}  // namespace

PYEXT_OPS(define, implement)

}  // namespace pyext::side
