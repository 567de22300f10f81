// Torch op: the gradient of a per-channel affine to its own parameters.
#include "side/bind/sums.h"

namespace pyext::side {
namespace {

std::tuple<Tensor, Tensor> side_affine_backward(const Tensor& g_, const Tensor& h_) {
  check_shape(h_, "h", {-1, -1, -1});
  const int64_t B = h_.size(0), N = h_.size(1), d = h_.size(2);
  const Tensor h = h_.detach().contiguous().view({B * N, d});
  const Tensor g = dense(g_, "g", h_, "h", {B, N, d}).detach().view({B * N, d});
  const auto wide = h.options().dtype(wide_type(h));
  Tensor g_a = at::empty({1, d}, wide), g_c = at::empty({1, d}, wide);
  const Blocks blocks(h, B * N);
  const ColumnSums sums(blocks, 1, d, h, true);
  Scratch scratch(h);
  dispatch_storage(h, "h", [&](auto zero) {
    using S = decltype(zero);
    const Context context = context_for(h, scratch);
    run_products(h, blocks.count, [&](int64_t block, int) {
      const int64_t row = blocks.first(block), size = blocks.size(block);
      sums.add<S>(0, block, g.narrow(0, row, size), h.narrow(0, row, size), context);
    });
    sums.join<S>(g_c, g_a, context);
  });
  return {g_a.view({d}), g_c.view({d})};
}

void define(torch::Library& m) {
  m.def("side_affine_backward(Tensor g, Tensor h) -> (Tensor g_a, Tensor g_c)");
}

void implement(torch::Library& m) { m.impl("side_affine_backward", &side_affine_backward); }

}  // namespace

PYEXT_OPS(define, implement)

}  // namespace pyext::side
