#include "side/bind/taps.h"

#include <string>

namespace pyext::side {
namespace {

std::string numbered(const char* name, size_t k) {
  return std::string(name) + "[" + std::to_string(k) + "]";
}

}  // namespace

std::vector<Tensor> list_of(at::TensorList tensors, const char* name, int64_t taps,
                            const Tensor& like, at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(int64_t(tensors.size()) == taps, name, ": expected ", taps,
                    " tensors, one a tap, got ", tensors.size());
  std::vector<Tensor> checked;
  for (size_t k = 0; k < tensors.size(); ++k)
    checked.push_back(dense(tensors[k], numbered(name, k).c_str(), like, "x[0]", shape).detach());
  return checked;
}

Taps::Taps(at::TensorList x_, at::TensorList w_, bool packed) : K(int64_t(x_.size())) {
  TORCH_CHECK_VALUE(K > 0, "x: expected at least one tap, got none");
  TORCH_CHECK_VALUE(int64_t(w_.size()) == K, "w: expected ", K, " tensors, one a tap, got ",
                    w_.size());
  check_shape(w_[0], "w[0]", {-1, -1});
  d = w_[0].size(0);
  check_shape(x_[0], "x[0]", packed ? at::IntArrayRef{-1, -1} : at::IntArrayRef{-1, -1, -1});
  B = packed ? 1 : x_[0].size(0);
  N = x_[0].size(-2);
  R = B * N;
  for (size_t k = 0; k < size_t(K); ++k) {
    const std::string at = numbered("x", k), of = numbered("w", k);
    check_like(x_[k], at.c_str(), x_[0], "x[0]");
    check_like(w_[k], of.c_str(), x_[0], "x[0]");
    check_shape(w_[k], of.c_str(), {d, -1});
    const int64_t D = w_[k].size(1);
    check_shape(x_[k], at.c_str(), packed ? at::IntArrayRef{N, D} : at::IntArrayRef{B, N, D});
    x.push_back(x_[k].detach().contiguous().view({R, D}));
    w.push_back(matrix(w_[k]));
  }
}

int64_t Taps::widest() const {
  int64_t D = 0;
  for (const Tensor& tap : x) D = std::max(D, tap.size(1));
  return D;
}

Tensor Taps::make_h(bool token) const {
  const auto options = like().options();
  return token ? empty({B, N, K, d}, options).transpose(1, 2) : empty({B, K, N, d}, options);
}

Tensor Taps::as_h(const Tensor& tensor, const char* name) const {
  check_like(tensor, name, like(), "x[0]");
  check_shape(tensor, name, {B, K, N, d});
  return d <= 1 || tensor.stride(3) == 1 ? tensor.detach() : tensor.detach().contiguous();
}

bool token_layout(c10::string_view layout) {
  TORCH_CHECK_VALUE(layout == "layer" || layout == "token",
                    "layout: expected 'layer' or 'token', got '", layout, "'");
  return layout == "token";
}

Spans::Spans(const std::vector<int64_t>& sample_ends, int64_t step, bool packed) {
  for (size_t sample = 0; sample + 1 < sample_ends.size(); ++sample) {
    for (int64_t row = sample_ends[sample]; row < sample_ends[sample + 1];) {
      if (row > 0 && row % step == 0) blocks.push_back(count());
      row = std::min(sample_ends[sample + 1], (row / step + 1) * step);
      ends.push_back(row);
    }
    samples.push_back(count());
  }
  blocks.push_back(count());
  if (packed)
    for (size_t sample = 0; sample + 1 < sample_ends.size(); ++sample)
      sample_of_row.resize(size_t(sample_ends[sample + 1]), int32_t(sample));
}

std::vector<int64_t> sequence_ends(const Tensor& cu_seqlens, const Tensor& like, int64_t tokens) {
  const Tensor ends =
      dense_typed(cu_seqlens, "cu_seqlens", at::kInt, like, "x", {-1}).cpu().to(at::kLong);
  const auto* begin = ends.data_ptr<int64_t>();
  const std::vector<int64_t> list(begin, begin + ends.numel());
  TORCH_CHECK_VALUE(list.size() >= 2,
                    "cu_seqlens: expected the ends of at least one sequence, got ", list.size(),
                    " of them");
  TORCH_CHECK_VALUE(
      list.front() == 0 && list.back() == tokens && std::is_sorted(list.begin(), list.end()),
      "cu_seqlens: expected ends that rise from 0 to ", tokens, ", got ", ends);
  return list;
}

}  // namespace pyext::side
