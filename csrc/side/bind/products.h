// Products of matrices by the vendor's library, in blocks of rows. On a CPU each block is
// multiplied by one thread, which then finishes it while it is in its cache; blocks depend on
// shapes alone, and so does every bit of the results. On a device a block is all there is.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>

#include "core/parallel.h"
#include "side/activation.h"
#include "side/bind/bind.h"

namespace pyext::side {

Activation activation_of(c10::string_view name, const char* argument);

// The dtype of Product<S>.
at::ScalarType product_type(const Tensor& x);

// A matrix as products take it: outside autograd, in product_type.
inline Tensor matrix(const Tensor& w) { return w.detach().to(product_type(w)); }

// Runs body(index, worker) for every task. Products made inside take one thread each, but on a
// device.
template <class Body>
void run_products(const Tensor& like, int64_t tasks, Body body) {
  const at::AutoDispatchBelowADInplaceOrView here;
  if (is_device(like)) {
    for (int64_t i = 0; i < tasks; ++i) body(i, 0);
    return;
  }
  auto task = [&](int64_t index, int worker) {
    const at::AutoDispatchBelowADInplaceOrView in_this_thread;
    if (index < tasks) body(index, worker);
  };
  // The library sees that it is called by one of several threads only where there are several.
  const int64_t at_least = 2;
  parallel_tasks(std::max(tasks, at_least), task);
}

// Rows in blocks.
struct Blocks {
  int64_t rows, step, count;

  Blocks(const Tensor& like, int64_t rows_)
      : rows(rows_),
        step(is_device(like) ? std::max<int64_t>(rows_, 1) : 512 / like.element_size()),
        count((rows_ + step - 1) / step) {}
  int64_t first(int64_t block) const { return block * step; }
  int64_t size(int64_t block) const { return std::min(step, rows - block * step); }
};

// Memory for one block and `columns` values a row, for each worker.
class BlockBuffers {
 public:
  BlockBuffers(const Blocks& blocks, int64_t columns, const at::TensorOptions& options)
      : memory_(at::empty({columns > 0 ? thread_count() : 0, blocks.step * columns}, options)) {}
  Tensor get(int worker, int64_t rows, int64_t columns) const {
    return memory_[worker].narrow(0, 0, rows * columns).view({rows, columns});
  }

 private:
  Tensor memory_;
};

// Whether rows must be copied before they are multiplied.
inline bool copied(const Tensor& x, Activation act) {
  return act != Activation::none || product_type(x) != x.scalar_type();
}

// copy = act(rows), in the type that products take.
template <class S>
void activate_into(const Tensor& copy, const Tensor& rows, Activation act, const Context& context) {
  kernels_for<S>(rows).activate({rows.numel(), act, pointer<S>(rows), pointer<Product<S>>(copy)},
                                context);
}

// The gradient of a block's rows of x, from that of act(x) w^T.
template <class S>
void rows_gradient(Tensor out, const Tensor& g, const Tensor& w, Activation act, const Tensor& x,
                   const BlockBuffers& buffers, int worker, const Context& context) {
  if (!copied(x, act)) {
    at::mm_out(out, g, w);
    return;
  }
  Tensor product = buffers.get(worker, x.size(0), x.size(1));
  at::mm_out(product, g, w);
  kernels_for<S>(x).activate_backward(
      {x.numel(), act, pointer<S>(x), pointer<Product<S>>(product), pointer<S>(out)}, context);
}

// A gradient of weights [d, D] = g [R, d]^T x [R, D] is made in parts of its rows.
inline int64_t weight_parts(const Tensor& like, int64_t d) {
  return is_device(like) ? 1 : (d + 255) / 256;
}
inline void weight_gradient(const Tensor& g_w, const Tensor& g, const Tensor& x, int64_t part,
                            int64_t parts) {
  const int64_t d = g_w.size(0), first = d * part / parts, size = d * (part + 1) / parts - first;
  Tensor out = g_w.narrow(0, first, size);
  at::mm_out(out, g.narrow(1, first, size).t(), x);
}

}  // namespace pyext::side
