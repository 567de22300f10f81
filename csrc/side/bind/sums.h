// Sums of rows in a fixed order: over spans first, then of spans.
#pragma once

#include <vector>

#include "side/bind/products.h"

namespace pyext::side {

// A list of integers where the kernels can read it.
Tensor on_device_of(const Tensor& like, const std::vector<int64_t>& values);
Tensor on_device_of(const Tensor& like, const std::vector<int32_t>& values);

// out[g, k] = scale[g] * sum over the spans of group g of sums [K, spans, d], for every k;
// out is [groups, K, d].
template <class S>
void join(const Tensor& sums, const Tensor& group_ends, const Tensor& scale, const Tensor& out,
          const Context& context) {
  const int64_t K = sums.size(0), d = sums.size(2), groups = group_ends.numel() - 1;
  for (int64_t k = 0; k < K; ++k)
    kernels_for<S>(sums).join_spans(
        {d, groups, pointer<int64_t>(group_ends), pointer<Wide<S>>(sums) + k * sums.size(1) * d,
         pointer<Wide<S>>(scale), pointer<Wide<S>>(out) + k * d, K * d},
        context);
}

// One group of all spans.
inline Tensor all_spans(const Tensor& like, int64_t spans) {
  return on_device_of(like, std::vector<int64_t>{0, spans});
}

// Sums over all rows of `arrays` arrays [rows, d] that come block by block, and of their products
// with others if `products`.
class ColumnSums {
 public:
  ColumnSums(const Blocks& blocks, int64_t arrays, int64_t d, const Tensor& like,
             bool products = false)
      : blocks_(blocks), d_(d), device_(is_device(like)), ends_(span_ends(blocks, like)) {
    const auto wide = like.options().dtype(wide_type(like));
    if (arrays) sums_ = at::empty({arrays, ends_.numel() - 1, d}, wide);
    if (arrays && products) products_ = at::empty_like(sums_);
  }

  // Rows [size of the block, d] of array i.
  template <class T>
  void add(int64_t i, int64_t block, const Tensor& rows, const Tensor& others,
           const Context& context) const {
    if (!sums_.defined()) return;
    const int64_t spans = ends_.numel() - 1, at = (i * spans + (device_ ? 0 : block)) * d_;
    SpanSumsArgs<T> a{};
    a.channels = d_;
    a.spans = device_ ? spans : 1;
    a.ends = pointer<int64_t>(ends_) + (device_ ? 0 : block);
    a.at = {blocks_.rows, 0, d_};
    // The kernel counts rows from the first of all.
    const int64_t before = blocks_.first(block) * d_;
    a.rows = pointer<T>(rows) - before;
    a.others = others.defined() ? pointer<T>(others) - before : nullptr;
    a.sums = pointer<Wide<T>>(sums_) + at;
    a.products = products_.defined() ? pointer<Wide<T>>(products_) + at : nullptr;
    kernels_for<T>(rows).span_sums(a, context);
  }

  // The sums [arrays, d], and those of products unless `products` is undefined.
  template <class S>
  void join(const Tensor& sums, const Tensor& products, const Context& context) const {
    const Tensor all = all_spans(sums_, ends_.numel() - 1);
    side::join<S>(sums_, all, {}, sums, context);
    if (products.defined()) side::join<S>(products_, all, {}, products, context);
  }

 private:
  const Blocks& blocks_;
  int64_t d_;
  bool device_;
  Tensor ends_, sums_, products_;

  // On a device a span is what one block of threads adds up.
  static Tensor span_ends(const Blocks& blocks, const Tensor& like) {
    const int64_t step = is_device(like) ? 64 : blocks.step;
    std::vector<int64_t> ends{0};
    while (ends.back() < blocks.rows) ends.push_back(std::min(ends.back() + step, blocks.rows));
    return on_device_of(like, ends);
  }
};

}  // namespace pyext::side
