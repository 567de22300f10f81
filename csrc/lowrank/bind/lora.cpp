// Torch ops: the two halves of many LoRAs in one batch, and the gradient of their factors.
#include "lowrank/bind/bind.h"

namespace pyext::lowrank {
namespace {

using Ranks = at::OptionalIntArrayRef;

// Adapters of the ranks given, whose factors are [sum of ranks, D].
Routing adapters_of(at::IntArrayRef ranks) {
  Routing routing{0, int64_t(ranks.size()), 0, nullptr, true, {}};
  TORCH_CHECK_VALUE(routing.adapters <= kMostRagged, "ranks: expected at most ", kMostRagged,
                    " adapters, got ", routing.adapters);
  for (size_t e = 0; e < ranks.size(); ++e) {
    TORCH_CHECK_VALUE(ranks[e] >= 0 && ranks[e] <= kMaxRank, "ranks: expected 0 to ", kMaxRank,
                      ", got ", ranks[e], " for adapter ", e);
    routing.first[e + 1] = routing.first[e] + int32_t(ranks[e]);
    routing.rank = std::max(routing.rank, ranks[e]);
  }
  return routing;
}

// Those of a factor, [E, r, width] without ranks.
Routing adapters_of(const Tensor& factor, const char* name, int64_t width, Ranks ranks) {
  if (ranks) return adapters_of(*ranks);
  const auto [E, r] = rank_of(factor, name, width);
  return {0, E, r, nullptr, false, {}};
}

c10::SmallVector<int64_t, 3> factor_shape(const Routing& adapters, int64_t width) {
  if (adapters.ragged) return {adapters.first[adapters.adapters], width};
  return {adapters.adapters, adapters.rank, width};
}

// The adapter of every row, checked on the CPU; a device is not waited for.
class Routes {
 public:
  Routes(const Routing& adapters, const OptionalTensor& idx, const OptionalTensor& start,
         const OptionalTensor& ids, int64_t rows, const Tensor& like, const char* like_name)
      : routing_(adapters) {
    routing_.rows = rows;
    TORCH_CHECK_VALUE(idx.has_value() != (start && ids), "idx: expected either idx or segments");
    if (idx) {
      adapter_ = integers(*idx, "idx", rows, like, like_name);
      check_range(adapter_, "idx");
      routing_.adapter = data<int64_t>(adapter_);
      return;
    }
    const Tensor own = integers(*ids, "segments[1]", -1, like, like_name);
    const Tensor begin = integers(*start, "segments[0]", own.size(0) + 1, like, like_name);
    check_range(own, "segments[1]");
    if (begin.is_cpu()) check_starts(begin);
    adapter_ = at::repeat_interleave(own, begin.diff(), std::nullopt, rows);
    routing_.adapter = data<int64_t>(adapter_);
  }

  const Routing& operator*() const { return routing_; }

 private:
  void check_range(const Tensor& values, const char* name) const {
    const int64_t* e = values.is_cpu() ? data<int64_t>(values) : nullptr;
    for (int64_t i = 0; e && i < values.numel(); ++i)
      TORCH_CHECK_VALUE(e[i] >= -1 && e[i] < routing_.adapters, name,
                        ": expected adapters from -1 to below ", routing_.adapters, ", got ", e[i],
                        " at ", i);
  }

  void check_starts(const Tensor& begin) const {
    const int64_t* at = begin.data_ptr<int64_t>();
    bool rises = at[0] == 0 && at[begin.numel() - 1] == routing_.rows;
    for (int64_t i = 1; i < begin.numel(); ++i) rises = rises && at[i] >= at[i - 1];
    TORCH_CHECK_VALUE(rises, "segments[0]: expected to rise from 0 to ", routing_.rows, ", got ",
                      at::IntArrayRef(at, size_t(begin.numel())));
  }

  Routing routing_;
  Tensor adapter_;
};

// Rows [N, width] whose values lie side by side; `held` keeps a copy alive where they do not.
const Tensor& rows_of(const Tensor& x, const char* name, int64_t width, Tensor& held) {
  check_shape(x, name, {-1, width});
  held = x.size(1) <= 1 || x.stride(1) == 1 ? x : x.contiguous();
  return held;
}

Tensor lowrank_lora_shrink(const Tensor& x_, const Tensor& A_, const OptionalTensor& idx,
                           const OptionalTensor& start, const OptionalTensor& ids,
                           const OptionalTensor& scale_, Ranks ranks) {
  Tensor held;
  const Tensor& x = rows_of(x_, "x", -1, held);
  const Routing adapters = adapters_of(A_, "A", x.size(1), ranks);
  const Tensor A = dense_wide(A_, "A", x, "x", factor_shape(adapters, x.size(1)));
  const Tensor scale = dense_typed(scale_, "scale", wide_type(x), x, "x", {adapters.adapters});
  const c10::OptionalDeviceGuard guard(x.device());
  const Routes routes(adapters, idx, start, ids, x.size(0), x, "x");
  Tensor z = at::empty({x.size(0), adapters.rank}, x.options().dtype(wide_type(x)));
  Scratch scratch(x);
  dispatch_storage(x, "x", [&](auto zero) {
    using S = decltype(zero);
    using T = Wide<S>;
    if (z.numel() == 0) return;
    const LoraShrinkArgs<S> args{*routes,       x.size(1),         x.stride(0),  pointer<S>(x),
                                 pointer<T>(A), pointer<T>(scale), pointer<T>(z)};
    kernels_for<S>(x).lora_shrink(args, context_for(x, scratch));
  });
  return z;
}

// Writes, or adds to, columns [offset, offset + width of B) of y.
void expand_to(const Tensor& y, bool add, const Tensor& z_, const Tensor& B_,
               const OptionalTensor& idx, const OptionalTensor& start, const OptionalTensor& ids,
               const OptionalTensor& scale_, int64_t offset, Ranks ranks) {
  const Routing adapters = adapters_of(B_, "B", -1, ranks);
  const int64_t width = B_.size(-1);
  const Tensor B = dense_wide(B_, "B", y, "base", factor_shape(adapters, width));
  const Tensor z = dense_typed(z_, "z", wide_type(y), y, "base", {y.size(0), adapters.rank});
  const Tensor scale = dense_typed(scale_, "scale", wide_type(y), y, "base", {adapters.adapters});
  TORCH_CHECK_VALUE(offset >= 0 && offset + width <= y.size(1), "offset: ", offset,
                    " and the width ", width, " of B do not fit base ", y.sizes());
  const c10::OptionalDeviceGuard guard(y.device());
  const Routes routes(adapters, idx, start, ids, y.size(0), y, "base");
  Scratch scratch(y);
  dispatch_storage(y, "base", [&](auto zero) {
    using S = decltype(zero);
    using T = Wide<S>;
    if (y.size(0) == 0 || width == 0) return;
    const LoraExpandArgs<S> args{
        *routes,           width, y.stride(0),           pointer<T>(z), pointer<T>(B),
        pointer<T>(scale), add,   pointer<S>(y) + offset};
    kernels_for<S>(y).lora_expand(args, context_for(y, scratch));
  });
}

void lowrank_lora_expand_(const Tensor& base, const Tensor& z, const Tensor& B,
                          const OptionalTensor& idx, const OptionalTensor& start,
                          const OptionalTensor& ids, int64_t offset, Ranks ranks) {
  check_shape(base, "base", {-1, -1});
  TORCH_CHECK_VALUE(base.is_contiguous(), "base: expected a contiguous tensor to write in place");
  expand_to(base, true, z, B, idx, start, ids, {}, offset, ranks);
  mark_written(base);
}

Tensor lowrank_lora_expand(const Tensor& base, const Tensor& z, const Tensor& B,
                           const OptionalTensor& idx, const OptionalTensor& start,
                           const OptionalTensor& ids, int64_t offset, Ranks ranks) {
  check_shape(base, "base", {-1, -1});
  Tensor y = empty(base.sizes(), base.options());
  y.copy_(base);
  expand_to(y, true, z, B, idx, start, ids, {}, offset, ranks);
  return y;
}

// The gradient to x of lora_shrink: rows like those of `like`, zero for those of no adapter.
Tensor lowrank_lora_spread(const Tensor& z, const Tensor& A, const OptionalTensor& idx,
                           const OptionalTensor& start, const OptionalTensor& ids,
                           const OptionalTensor& scale, const Tensor& like, Ranks ranks) {
  check_shape(like, "like", {z.size(0), A.size(-1)});
  Tensor y = empty(like.sizes(), like.options());
  expand_to(y, false, z, A, idx, start, ids, scale, 0, ranks);
  return y;
}

// The gradient of factors W, of whose values nothing is read: in their shape, times the scale.
Tensor lowrank_lora_outer(const Tensor& z_, const Tensor& x_, const Tensor& W,
                          const OptionalTensor& idx, const OptionalTensor& start,
                          const OptionalTensor& ids, const OptionalTensor& scale_, Ranks ranks) {
  Tensor held;
  const Tensor& x = rows_of(x_, "x", -1, held);
  const Routing adapters = adapters_of(W, "W", x.size(1), ranks);
  check_shape(W, "W", factor_shape(adapters, x.size(1)));
  const at::ScalarType wide = wide_type(x);
  const Tensor z = dense_typed(z_, "z", wide, x, "x", {x.size(0), adapters.rank});
  const Tensor scale = dense_typed(scale_, "scale", wide, x, "x", {adapters.adapters});
  const c10::OptionalDeviceGuard guard(x.device());
  const Routes routes(adapters, idx, start, ids, x.size(0), x, "x");
  Tensor G = empty(W.sizes(), z.options());
  Scratch scratch(x);
  dispatch_storage(x, "x", [&](auto zero) {
    using S = decltype(zero);
    using T = Wide<S>;
    if (G.numel() == 0) return;
    const LoraOuterArgs<S> args{*routes,       x.size(1),         x.stride(0),  pointer<T>(z),
                                pointer<S>(x), pointer<T>(scale), pointer<T>(G)};
    kernels_for<S>(x).lora_outer(args, context_for(x, scratch));
  });
  return G;
}

#define PYEXT_ROUTE "Tensor? idx, Tensor? start, Tensor? ids"

void define(torch::Library& m) {
  m.def("lowrank_lora_shrink(Tensor x, Tensor A, " PYEXT_ROUTE
        ", Tensor? scale, int[]? ranks) -> Tensor z");
  m.def("lowrank_lora_expand(Tensor base, Tensor z, Tensor B, " PYEXT_ROUTE
        ", int offset, int[]? ranks) -> Tensor y");
  m.def("lowrank_lora_expand_(Tensor(a!) base, Tensor z, Tensor B, " PYEXT_ROUTE
        ", int offset, int[]? ranks) -> ()");
  m.def("lowrank_lora_spread(Tensor z, Tensor A, " PYEXT_ROUTE
        ", Tensor? scale, Tensor like, int[]? ranks) -> Tensor g_x");
  m.def("lowrank_lora_outer(Tensor z, Tensor x, Tensor W, " PYEXT_ROUTE
        ", Tensor? scale, int[]? ranks) -> Tensor g_W");
}

void implement(torch::Library& m) {
  m.impl("lowrank_lora_shrink", &lowrank_lora_shrink);
  m.impl("lowrank_lora_expand", &lowrank_lora_expand);
  m.impl("lowrank_lora_expand_", &lowrank_lora_expand_);
  m.impl("lowrank_lora_spread", &lowrank_lora_spread);
  m.impl("lowrank_lora_outer", &lowrank_lora_outer);
}

}  // namespace

PYEXT_OPS(define, implement)

}  // namespace pyext::lowrank
