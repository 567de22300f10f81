// K taps of one frozen network beside their matrices, checked; and the rows they are cut into.
#pragma once

#include <vector>

#include "side/bind/products.h"

namespace pyext::side {

// A tensor a tap, checked against dtype and device of `like` and against the shape; contiguous.
std::vector<Tensor> list_of(at::TensorList tensors, const char* name, int64_t taps,
                            const Tensor& like, at::IntArrayRef shape);

struct Taps {
  int64_t K, B, N, R, d;  // R = B N rows a tap; B = 1 and N = T when packed
  std::vector<Tensor> x;  // [R, D_k], outside autograd
  std::vector<Tensor> w;  // [d, D_k], as products take them

  Taps(at::TensorList x_, at::TensorList w_, bool packed);

  const Tensor& like() const { return x[0]; }
  int64_t width(int64_t k) const { return x[size_t(k)].size(1); }
  int64_t widest() const;

  // A tensor of logical shape [B, K, N, d] and the memory of a layout; `token`: [B, N, K, d].
  Tensor make_h(bool token) const;
  // The same of a tensor that was given, checked: channels side by side, whatever its layout.
  Tensor as_h(const Tensor& tensor, const char* name) const;

  // Where rows of a tap lie in [B, K, N].
  RowMap stat_at() const { return {N, K * N, 1}; }
};

// Where rows of a tap lie in a tensor [B, K, N, d], and where the first one does.
inline RowMap rows_in(const Tensor& h) { return {h.size(2), h.stride(0), h.stride(2)}; }
template <class S>
S* tap_in(const Tensor& h, int64_t k) {
  return pointer<S>(h) + k * h.stride(1);
}

bool token_layout(c10::string_view layout);

// Which samples rows belong to, and spans: the rows of one sample in one block.
struct Spans {
  std::vector<int64_t> ends{0};        // [spans + 1]
  std::vector<int64_t> blocks{0};      // [blocks + 1]: the spans of a block
  std::vector<int64_t> samples{0};     // [samples + 1]: the spans of a sample
  std::vector<int32_t> sample_of_row;  // empty unless packed

  // `ends` of the samples' rows.
  Spans(const std::vector<int64_t>& sample_ends, int64_t step, bool packed);
  int64_t count() const { return int64_t(ends.size()) - 1; }
};

// The ends [B + 1] of sequences, checked: they rise from 0 to `tokens`. Waits for the device.
std::vector<int64_t> sequence_ends(const Tensor& cu_seqlens, const Tensor& like, int64_t tokens);

}  // namespace pyext::side
