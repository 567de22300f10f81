// Torch ops: K taps projected through a gate, and the gradient.
#include <array>

#include "side/bind/sums.h"
#include "side/bind/taps.h"

namespace pyext::side {
namespace {

struct GatedTaps {
  Taps taps;
  std::vector<Tensor> b1, w2, b2, w3, b3;
  bool token;
  Blocks blocks;

  GatedTaps(at::TensorList x, at::TensorList w1, at::TensorList b1_, at::TensorList w2_,
            at::TensorList b2_, at::TensorList w3_, at::TensorList b3_, c10::string_view layout)
      : taps(x, w1, false),
        b1(given(b1_, "b1", {taps.d})),
        w2(given(w2_, "w2", {taps.d, taps.d})),
        b2(given(b2_, "b2", {taps.d})),
        w3(given(w3_, "w3", {taps.d, taps.d})),
        b3(given(b3_, "b3", {taps.d})),
        token(token_layout(layout)),
        blocks(taps.like(), taps.R) {
    for (Tensor& w : w2) w = matrix(w);
    for (Tensor& w : w3) w = matrix(w);
  }

  at::TensorOptions products() const {
    return taps.like().options().dtype(product_type(taps.like()));
  }
  bool copies() const { return copied(taps.like(), Activation::none); }

  // The rows of a block as products take them; `copy` is memory for them.
  template <class S>
  Tensor rows(int64_t k, int64_t block, const Tensor& copy, const Context& context) const {
    const Tensor x = taps.x[size_t(k)].narrow(0, blocks.first(block), blocks.size(block));
    if (!copies()) return x;
    activate_into<S>(copy, x, Activation::none, context);
    return copy;
  }

  template <class S>
  GatedArgs<S> args(int64_t k, int64_t block, const Tensor& hidden, const Tensor& value,
                    const Tensor& gate) const {
    GatedArgs<S> a{};
    a.channels = taps.d;
    a.first = blocks.first(block);
    a.count = blocks.size(block);
    a.hidden = pointer<Product<S>>(hidden);
    a.value = pointer<Product<S>>(value);
    a.gate = pointer<Product<S>>(gate);
    a.bias2 = pointer<S>(b2[size_t(k)]);
    a.bias3 = pointer<S>(b3[size_t(k)]);
    a.at = taps.at(token);
    return a;
  }

  // Products of a block's hidden rows with the second and the third matrix.
  void inner_products(int64_t k, const Tensor& hidden, Tensor& value, Tensor& gate) const {
    at::mm_out(value, hidden, w2[size_t(k)].t());
    at::mm_out(gate, hidden, w3[size_t(k)].t());
  }

 private:
  std::vector<Tensor> given(at::TensorList tensors, const char* name, at::IntArrayRef shape) const {
    TORCH_CHECK_VALUE(int64_t(tensors.size()) == taps.K, name, ": expected ", taps.K,
                      " tensors, one a tap, got ", tensors.size());
    return taps.list(tensors, name, shape);
  }
};

std::tuple<Tensor, Tensor> side_project_gated(at::TensorList x, at::TensorList w1,
                                              at::TensorList b1, at::TensorList w2,
                                              at::TensorList b2, at::TensorList w3,
                                              at::TensorList b3, c10::string_view layout) {
  const GatedTaps p(x, w1, b1, w2, b2, w3, b3, layout);
  const Taps& t = p.taps;
  const Tensor& like = t.like();
  const Tensor f = t.make_h(p.token), hid = t.make_h(p.token);
  Scratch scratch(like);
  dispatch(like, "x", [&](auto zero) {
    using S = decltype(zero);
    const Context context = context_for(like, scratch);
    const std::array<BlockBuffers, 3> buffers{BlockBuffers(p.blocks, t.d, p.products()),
                                              BlockBuffers(p.blocks, t.d, p.products()),
                                              BlockBuffers(p.blocks, t.d, p.products())};
    const BlockBuffers copies(p.blocks, p.copies() ? t.widest() : 0, p.products());
    run_products(like, t.K * p.blocks.count, [&](int64_t index, int worker) {
      const int64_t k = index % t.K, block = index / t.K, rows = p.blocks.size(block);
      const Tensor own = p.copies() ? copies.get(worker, rows, t.width(k)) : Tensor();
      Tensor hidden = buffers[0].get(worker, rows, t.d);
      Tensor value = buffers[1].get(worker, rows, t.d), gate = buffers[2].get(worker, rows, t.d);
      at::mm_out(value, p.rows<S>(k, block, own, context), t.w[size_t(k)].t());
      const int64_t first = t.first(k, p.token);
      kernels_for<S>(like).gated_hidden(
          {t.d, p.blocks.first(block), rows, pointer<Product<S>>(value),
           pointer<S>(p.b1[size_t(k)]), t.at(p.token), pointer<S>(hid) + first,
           pointer<Product<S>>(hidden)},
          context);
      p.inner_products(k, hidden, value, gate);
      GatedArgs<S> args = p.args<S>(k, block, hidden, value, gate);
      args.f = pointer<S>(f) + first;
      kernels_for<S>(like).gated(args, context);
    });
  });
  return {f, hid};
}

// The gradients of one call, for some taps at a time: as many as fit into the buffers.
class GatedBackward {
 public:
  std::vector<Tensor> g_x, g_w1, g_w2, g_w3;  // matrices in the type of products
  Tensor g_b;                                 // [3, K, d] sums: of b1, b2 and b3

  GatedBackward(const GatedTaps& p, const c10::List<bool>& need_x) : p_(p) {
    const Taps& t = p.taps;
    for (int64_t k = 0; k < t.K; ++k) {
      g_x.push_back(at::empty({need_x[size_t(k)] ? t.R : 0, t.width(k)}, t.like().options()));
      g_w1.push_back(at::empty({t.d, t.width(k)}, p.products()));
      g_w2.push_back(at::empty({t.d, t.d}, p.products()));
      g_w3.push_back(at::empty({t.d, t.d}, p.products()));
    }
    g_b = at::empty({3, t.K, t.d}, t.like().options().dtype(wide_type(t.like())));
  }

  template <class S>
  void run(const Tensor& hid, const Tensor& g_f, const Context& context) {
    constexpr int64_t kBufferBytes = int64_t(128) << 20;
    const Taps& t = p_.taps;
    const int64_t one = std::max<int64_t>(4 * t.R * t.d * int64_t(sizeof(Product<S>)), 1);
    const int64_t group = std::clamp<int64_t>(kBufferBytes / one, 1, t.K);
    for (Tensor* buffer : {&hidden_, &g_u_, &g_value_, &g_gate_})
      *buffer = empty({group, t.R, t.d}, p_.products());
    copies_ = empty({p_.copies() ? group : 0, t.R * t.widest()}, p_.products());
    for (int64_t first = 0; first < t.K; first += group) {
      const int64_t count = std::min(group, t.K - first);
      rows<S>(hid, g_f, first, count, context);
      weights(first, count);
    }
  }

 private:
  const GatedTaps& p_;
  Tensor hidden_, g_u_, g_value_, g_gate_;  // [taps at a time, R, d]
  Tensor copies_;

  // Tap i of the group as products take it.
  Tensor x_of(int64_t i, int64_t k) const {
    const Taps& t = p_.taps;
    if (!p_.copies()) return t.x[size_t(k)];
    return copies_[i].narrow(0, 0, t.R * t.width(k)).view({t.R, t.width(k)});
  }

  template <class S>
  void rows(const Tensor& hid, const Tensor& g_f, int64_t first, int64_t count,
            const Context& context) {
    const Taps& t = p_.taps;
    const BlockBuffers values(p_.blocks, t.d, p_.products()), gates(p_.blocks, t.d, p_.products());
    const BlockBuffers g_rows(p_.blocks, p_.copies() ? t.widest() : 0, p_.products());
    const ColumnSums sums(p_.blocks, 3 * count, t.d, t.like());
    run_products(t.like(), count * p_.blocks.count, [&](int64_t index, int worker) {
      const int64_t i = index % count, k = first + i, block = index / count;
      const int64_t row = p_.blocks.first(block), size = p_.blocks.size(block);
      const auto block_of = [&](const Tensor& buffer) { return buffer[i].narrow(0, row, size); };
      const Tensor hidden = block_of(hidden_), g_u = block_of(g_u_);
      const Tensor g_value = block_of(g_value_), g_gate = block_of(g_gate_);
      Tensor value = values.get(worker, size, t.d), gate = gates.get(worker, size, t.d);
      const int64_t at = t.first(k, p_.token);
      const Kernels<S>& kernels = kernels_for<S>(t.like());
      kernels.copy_rows(
          {t.d, row, size, t.at(p_.token), pointer<S>(hid) + at, pointer<Product<S>>(hidden)},
          context);
      p_.inner_products(k, hidden, value, gate);
      kernels.gated_backward({p_.args<S>(k, block, hidden, value, gate), pointer<S>(g_f) + at,
                              pointer<Product<S>>(g_value), pointer<Product<S>>(g_gate)},
                             context);
      at::mm_out(value, g_value, p_.w2[size_t(k)]);
      at::addmm_out(value, value, g_gate, p_.w3[size_t(k)]);
      kernels.gated_join({hidden.numel(), pointer<Product<S>>(hidden), pointer<Product<S>>(g_value),
                          pointer<Product<S>>(value), pointer<Product<S>>(g_u)},
                         context);
      sums.add<Product<S>>(i, block, g_u, {}, context);
      sums.add<Product<S>>(count + i, block, g_value, {}, context);
      sums.add<Product<S>>(2 * count + i, block, g_gate, {}, context);
      if (p_.copies()) p_.rows<S>(k, block, x_of(i, k).narrow(0, row, size), context);
      if (g_x[size_t(k)].numel())
        rows_gradient<S>(g_x[size_t(k)].narrow(0, row, size), g_u, t.w[size_t(k)], Activation::none,
                         t.x[size_t(k)].narrow(0, row, size), g_rows, worker, context);
    });
    const Tensor joined = at::empty({3, count, t.d}, g_b.options());
    sums.join<S>(joined.view({3 * count, t.d}), {}, context);
    g_b.narrow(1, first, count).copy_(joined);
  }

  void weights(int64_t first, int64_t count) {
    const Taps& t = p_.taps;
    const int64_t parts = weight_parts(t.like(), t.d);
    run_products(t.like(), 3 * count * parts, [&](int64_t index, int) {
      const int64_t i = index % count, k = first + i;
      const int64_t which = index / count % 3, part = index / (3 * count);
      if (which == 0) weight_gradient(g_w1[size_t(k)], g_u_[i], x_of(i, k), part, parts);
      if (which == 1) weight_gradient(g_w2[size_t(k)], g_value_[i], hidden_[i], part, parts);
      if (which == 2) weight_gradient(g_w3[size_t(k)], g_gate_[i], hidden_[i], part, parts);
    });
  }
};

using Lists = std::vector<Tensor>;

std::tuple<Lists, Lists, Lists, Lists, Lists, Lists, Lists> side_project_gated_backward(
    at::TensorList x, at::TensorList w1, at::TensorList b1, at::TensorList w2, at::TensorList b2,
    at::TensorList w3, at::TensorList b3, c10::string_view layout, const Tensor& hid,
    const Tensor& g_f, c10::List<bool> need_x) {
  const GatedTaps p(x, w1, b1, w2, b2, w3, b3, layout);
  const Taps& t = p.taps;
  TORCH_CHECK_VALUE(int64_t(need_x.size()) == t.K, "need_x: expected ", t.K, " values, got ",
                    need_x.size());
  const Tensor hidden = t.as_h(hid, "hid", p.token), upstream = t.as_h(g_f, "g_f", p.token);
  GatedBackward b(p, need_x);
  Scratch scratch(t.like());
  dispatch(t.like(), "x", [&](auto zero) {
    b.run<decltype(zero)>(hidden, upstream, context_for(t.like(), scratch));
  });
  const auto type = t.like().scalar_type();
  std::array<Lists, 3> biases;
  Lists g_x;
  for (int64_t k = 0; k < t.K; ++k) {
    for (size_t i = 0; i < 3; ++i) biases[i].push_back(b.g_b[int64_t(i)][k].to(type, false, true));
    g_x.push_back(need_x[size_t(k)] ? b.g_x[size_t(k)].view(x[size_t(k)].sizes())
                                    : at::empty({0}, t.like().options()));
    for (Lists* list : {&b.g_w1, &b.g_w2, &b.g_w3})
      (*list)[size_t(k)] = (*list)[size_t(k)].to(type);
  }
  return {g_x, b.g_w1, biases[0], b.g_w2, biases[1], b.g_w3, biases[2]};
}

void define(torch::Library& m) {
  m.def(
      "side_project_gated(Tensor[] x, Tensor[] w1, Tensor[] b1, Tensor[] w2, Tensor[] b2, "
      "Tensor[] w3, Tensor[] b3, str layout) -> (Tensor f, Tensor hid)");
  m.def(
      "side_project_gated_backward(Tensor[] x, Tensor[] w1, Tensor[] b1, Tensor[] w2, "
      "Tensor[] b2, Tensor[] w3, Tensor[] b3, str layout, Tensor hid, Tensor g_f, bool[] need_x) "
      "-> (Tensor[] g_x, Tensor[] g_w1, Tensor[] g_b1, Tensor[] g_w2, Tensor[] g_b2, "
      "Tensor[] g_w3, Tensor[] g_b3)");
}

void implement(torch::Library& m) {
  m.impl("side_project_gated", &side_project_gated);
  m.impl("side_project_gated_backward", &side_project_gated_backward);
}

}  // namespace

PYEXT_SIDE_OPS(define, implement)

}  // namespace pyext::side
