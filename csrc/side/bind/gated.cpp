// Torch ops: K taps projected through a gate, and the gradient.
#include <array>

#include "side/bind/mixing.h"
#include "side/bind/sums.h"
#include "side/bind/taps.h"

namespace pyext::side {
namespace {

// The gate's matrices behind the first ones, checked, as products take them.
struct GateMatrices {
  std::vector<Tensor> w2, b2, w3, b3;

  // K of them of width d, for activations like `like`.
  GateMatrices(const Tensor& like, int64_t K, int64_t d, at::TensorList w2_, at::TensorList b2_,
               at::TensorList w3_, at::TensorList b3_)
      : w2(list_of(w2_, "w2", K, like, {d, d})),
        b2(list_of(b2_, "b2", K, like, {d})),
        w3(list_of(w3_, "w3", K, like, {d, d})),
        b3(list_of(b3_, "b3", K, like, {d})) {
    for (Tensor& w : w2) w = matrix(w);
    for (Tensor& w : w3) w = matrix(w);
  }

  // Products of a block's hidden rows with both.
  void multiply(int64_t k, const Tensor& hidden, Tensor& value, Tensor& gate) const {
    at::mm_out(value, hidden, w2[size_t(k)].t());
    at::mm_out(gate, hidden, w3[size_t(k)].t());
  }

  template <class S>
  GatedArgs<S> args(int64_t k, const Blocks& blocks, int64_t block, const Tensor& hidden,
                    const Tensor& value, const Tensor& gate) const {
    GatedArgs<S> a{};
    a.channels = hidden.size(1);
    a.first = blocks.first(block);
    a.count = blocks.size(block);
    a.hidden = pointer<Product<S>>(hidden);
    a.value = pointer<Product<S>>(value);
    a.gate = pointer<Product<S>>(gate);
    a.bias2 = pointer<S>(b2[size_t(k)]);
    a.bias3 = pointer<S>(b3[size_t(k)]);
    return a;
  }

  // From a block's hidden rows to those of f; value and gate are memory for the products.
  template <class S>
  void finish(int64_t k, const Blocks& blocks, int64_t block, const Tensor& hidden, Tensor& value,
              Tensor& gate, const Tensor& f, const Context& context) const {
    multiply(k, hidden, value, gate);
    GatedArgs<S> a = args<S>(k, blocks, block, hidden, value, gate);
    a.at = rows_in(f);
    a.f = tap_in<S>(f, k);
    kernels_for<S>(f).gated(a, context);
  }
};

// A block's hidden rows, as products take them.
template <class S>
void copy_hidden(const Tensor& copy, const Tensor& hid, int64_t k, int64_t row,
                 const Context& context) {
  kernels_for<S>(hid).copy_rows(
      {copy.size(1), row, copy.size(0), rows_in(hid), tap_in<S>(hid, k), pointer<Product<S>>(copy)},
      context);
}

struct GatedTaps {
  Taps taps;
  std::vector<Tensor> b1;
  GateMatrices inner;
  Blocks blocks;

  GatedTaps(at::TensorList x, at::TensorList w1, at::TensorList b1_, at::TensorList w2,
            at::TensorList b2, at::TensorList w3, at::TensorList b3)
      : taps(x, w1, false),
        b1(list_of(b1_, "b1", taps.K, taps.like(), {taps.d})),
        inner(taps.like(), taps.K, taps.d, w2, b2, w3, b3),
        blocks(taps.like(), taps.R) {}

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
};

std::tuple<Tensor, Tensor> side_project_gated(at::TensorList x, at::TensorList w1,
                                              at::TensorList b1, at::TensorList w2,
                                              at::TensorList b2, at::TensorList w3,
                                              at::TensorList b3, c10::string_view layout) {
  const GatedTaps p(x, w1, b1, w2, b2, w3, b3);
  const Taps& t = p.taps;
  const Tensor& like = t.like();
  const bool token = token_layout(layout);
  const Tensor f = t.make_h(token), hid = t.make_h(token);
  Scratch scratch(like);
  dispatch_storage(like, "x", [&](auto zero) {
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
      kernels_for<S>(like).gated_hidden(
          {t.d, p.blocks.first(block), rows, pointer<Product<S>>(value),
           pointer<S>(p.b1[size_t(k)]), rows_in(hid), tap_in<S>(hid, k),
           pointer<Product<S>>(hidden)},
          context);
      p.inner.finish<S>(k, p.blocks, block, hidden, value, gate, f, context);
    });
  });
  return {f, hid};
}

// f again, and its two products [K, B N, d] for the backward.
std::tuple<Tensor, Tensor, Tensor> side_gated_features(const Tensor& hid_, at::TensorList w2,
                                                       at::TensorList b2, at::TensorList w3,
                                                       at::TensorList b3) {
  check_shape(hid_, "hid", {-1, -1, -1, -1});
  const int64_t K = hid_.size(1), d = hid_.size(3), R = hid_.size(0) * hid_.size(2);
  const GateMatrices inner(hid_, K, d, w2, b2, w3, b3);
  const Tensor hid = d <= 1 || hid_.stride(3) == 1 ? hid_.detach() : hid_.detach().contiguous();
  const Tensor f = empty_gradient(hid);
  const Blocks blocks(hid, R);
  const auto products = hid.options().dtype(product_type(hid));
  const Tensor values = empty({K, R, d}, products), gates = empty({K, R, d}, products);
  Scratch scratch(hid);
  dispatch_storage(hid, "hid", [&](auto zero) {
    using S = decltype(zero);
    const Context context = context_for(hid, scratch);
    const BlockBuffers copies(blocks, d, products);
    run_products(hid, K * blocks.count, [&](int64_t index, int worker) {
      const int64_t k = index % K, block = index / K, rows = blocks.size(block);
      const Tensor hidden = copies.get(worker, rows, d);
      Tensor value = values[k].narrow(0, blocks.first(block), rows);
      Tensor gate = gates[k].narrow(0, blocks.first(block), rows);
      copy_hidden<S>(hidden, hid, k, blocks.first(block), context);
      inner.finish<S>(k, blocks, block, hidden, value, gate, f, context);
    });
  });
  return {f, values, gates};
}

// The gradients of one call, for some taps at a time: as many as fit into the buffers.
class GatedBackward {
 public:
  std::vector<Tensor> g_x, g_w1, g_w2, g_w3;  // matrices in the type of products
  Tensor g_b;                                 // [3, K, d] sums: of b1, b2 and b3
  Tensor values, gates;                       // products [K, R, d], or undefined

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
    const BlockBuffers buffers(p_.blocks, t.d, p_.products());
    const BlockBuffers more_buffers(p_.blocks, values.defined() ? 0 : t.d, p_.products());
    const BlockBuffers g_rows(p_.blocks, p_.copies() ? t.widest() : 0, p_.products());
    const ColumnSums sums(p_.blocks, 3 * count, t.d, t.like());
    run_products(t.like(), count * p_.blocks.count, [&](int64_t index, int worker) {
      const int64_t i = index % count, k = first + i, block = index / count;
      const int64_t row = p_.blocks.first(block), size = p_.blocks.size(block);
      const auto block_of = [&](const Tensor& buffer) { return buffer[i].narrow(0, row, size); };
      const Tensor hidden = block_of(hidden_), g_u = block_of(g_u_);
      const Tensor g_value = block_of(g_value_), g_gate = block_of(g_gate_);
      Tensor through = buffers.get(worker, size, t.d), value = through, gate;
      const Kernels<S>& kernels = kernels_for<S>(t.like());
      copy_hidden<S>(hidden, hid, k, row, context);
      if (values.defined()) {
        value = values[k].narrow(0, row, size);
        gate = gates[k].narrow(0, row, size);
      } else {
        gate = more_buffers.get(worker, size, t.d);
        p_.inner.multiply(k, hidden, value, gate);
      }
      kernels.gated_backward(
          {p_.inner.args<S>(k, p_.blocks, block, hidden, value, gate), rows_in(g_f),
           tap_in<S>(g_f, k), pointer<Product<S>>(g_value), pointer<Product<S>>(g_gate)},
          context);
      at::mm_out(through, g_value, p_.inner.w2[size_t(k)]);
      at::addmm_out(through, through, g_gate, p_.inner.w3[size_t(k)]);
      kernels.gated_join({hidden.numel(), pointer<Product<S>>(hidden), pointer<Product<S>>(g_value),
                          pointer<Product<S>>(through), pointer<Product<S>>(g_u)},
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
    at::TensorList w3, at::TensorList b3, const Tensor& hid, const OptionalTensor& values,
    const OptionalTensor& gates, const Tensor& g_f, c10::List<bool> need_x) {
  const GatedTaps p(x, w1, b1, w2, b2, w3, b3);
  const Taps& t = p.taps;
  TORCH_CHECK_VALUE(int64_t(need_x.size()) == t.K, "need_x: expected ", t.K, " values, got ",
                    need_x.size());
  const Tensor hidden = t.as_h(hid, "hid"), upstream = t.as_h(g_f, "g_f");
  GatedBackward b(p, need_x);
  TORCH_CHECK_VALUE(values.has_value() == gates.has_value(), "values: expected gates beside it");
  if (values) {
    check_dtype(*values, "values", product_type(t.like()));
    check_dtype(*gates, "gates", product_type(t.like()));
    check_shape(*values, "values", {t.K, t.R, t.d});
    check_shape(*gates, "gates", {t.K, t.R, t.d});
    b.values = values->detach().contiguous();
    b.gates = gates->detach().contiguous();
  }
  Scratch scratch(t.like());
  dispatch_storage(t.like(), "x", [&](auto zero) {
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
      "side_gated_features(Tensor hid, Tensor[] w2, Tensor[] b2, Tensor[] w3, Tensor[] b3) "
      "-> (Tensor f, Tensor values, Tensor gates)");
  m.def(
      "side_project_gated_backward(Tensor[] x, Tensor[] w1, Tensor[] b1, Tensor[] w2, "
      "Tensor[] b2, Tensor[] w3, Tensor[] b3, Tensor hid, Tensor? values, Tensor? gates, Tensor "
      "g_f, bool[] need_x) "
      "-> (Tensor[] g_x, Tensor[] g_w1, Tensor[] g_b1, Tensor[] g_w2, Tensor[] g_b2, "
      "Tensor[] g_w3, Tensor[] g_b3)");
}

void implement(torch::Library& m) {
  m.impl("side_project_gated", &side_project_gated);
  m.impl("side_gated_features", &side_gated_features);
  m.impl("side_project_gated_backward", &side_project_gated_backward);
}

}  // namespace

PYEXT_OPS(define, implement)

}  // namespace pyext::side
