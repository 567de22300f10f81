// Torch ops: the two halves of many LoRAs in one batch, and the gradient of their factors.
#include "lowrank/bind/bind.h"

namespace pyext::lowrank {
namespace {

// The adapter of every row, checked on the CPU; a device is not waited for.
class Routes {
 public:
  Routes(const OptionalTensor& idx, const OptionalTensor& start, const OptionalTensor& ids,
         int64_t rows, int64_t adapters, int64_t rank, const Tensor& like, const char* like_name)
      : rows_(rows), adapters_(adapters), rank_(rank) {
    TORCH_CHECK_VALUE(idx.has_value() != (start && ids), "idx: expected either idx or segments");
    if (idx) {
      adapter_ = integers(*idx, "idx", rows, like, like_name);
      check_range(adapter_, "idx");
      return;
    }
    const Tensor own = integers(*ids, "segments[1]", -1, like, like_name);
    const Tensor begin = integers(*start, "segments[0]", own.size(0) + 1, like, like_name);
    check_range(own, "segments[1]");
    if (begin.is_cpu()) check_starts(begin);
    adapter_ = at::repeat_interleave(own, begin.diff(), std::nullopt, rows);
  }

  Routing routing() const { return {rows_, adapters_, rank_, data<int64_t>(adapter_)}; }

 private:
  void check_range(const Tensor& values, const char* name) const {
    const int64_t* e = values.is_cpu() ? data<int64_t>(values) : nullptr;
    for (int64_t i = 0; e && i < values.numel(); ++i)
      TORCH_CHECK_VALUE(e[i] >= -1 && e[i] < adapters_, name,
                        ": expected adapters from -1 to below ", adapters_, ", got ", e[i], " at ",
                        i);
  }

  void check_starts(const Tensor& begin) const {
    const int64_t* at = begin.data_ptr<int64_t>();
    bool rises = at[0] == 0 && at[begin.numel() - 1] == rows_;
    for (int64_t i = 1; i < begin.numel(); ++i) rises = rises && at[i] >= at[i - 1];
    TORCH_CHECK_VALUE(rises, "segments[0]: expected to rise from 0 to ", rows_, ", got ",
                      at::IntArrayRef(at, size_t(begin.numel())));
  }

  int64_t rows_, adapters_, rank_;
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
                           const OptionalTensor& scale_) {
  Tensor held;
  const Tensor& x = rows_of(x_, "x", -1, held);
  const auto [E, r] = rank_of(A_, "A", x.size(1));
  const Tensor A = dense_wide(A_, "A", x, "x", {E, r, x.size(1)});
  const Tensor scale = dense_typed(scale_, "scale", wide_type(x), x, "x", {E});
  const c10::OptionalDeviceGuard guard(x.device());
  const Routes routes(idx, start, ids, x.size(0), E, r, x, "x");
  Tensor z = at::empty({x.size(0), r}, x.options().dtype(wide_type(x)));
  Scratch scratch(x);
  dispatch_storage(x, "x", [&](auto zero) {
    using S = decltype(zero);
    using T = Wide<S>;
    if (z.numel() == 0) return;
    const LoraShrinkArgs<S> args{routes.routing(), x.size(1),         x.stride(0),  pointer<S>(x),
                                 pointer<T>(A),    pointer<T>(scale), pointer<T>(z)};
    kernels_for<S>(x).lora_shrink(args, context_for(x, scratch));
  });
  return z;
}

// Writes, or adds to, columns [offset, offset + width of B) of y.
void expand_to(const Tensor& y, bool add, const Tensor& z_, const Tensor& B_,
               const OptionalTensor& idx, const OptionalTensor& start, const OptionalTensor& ids,
               const OptionalTensor& scale_, int64_t offset) {
  const auto [E, r] = rank_of(B_, "B", -1);
  const int64_t width = B_.size(2);
  const Tensor B = dense_wide(B_, "B", y, "base", {E, r, width});
  const Tensor z = dense_typed(z_, "z", wide_type(y), y, "base", {y.size(0), r});
  const Tensor scale = dense_typed(scale_, "scale", wide_type(y), y, "base", {E});
  TORCH_CHECK_VALUE(offset >= 0 && offset + width <= y.size(1), "offset: ", offset,
                    " and the width ", width, " of B do not fit base ", y.sizes());
  const c10::OptionalDeviceGuard guard(y.device());
  const Routes routes(idx, start, ids, y.size(0), E, r, y, "base");
  Scratch scratch(y);
  dispatch_storage(y, "base", [&](auto zero) {
    using S = decltype(zero);
    using T = Wide<S>;
    if (y.size(0) == 0 || width == 0) return;
    const LoraExpandArgs<S> args{
        routes.routing(),  width, y.stride(0),           pointer<T>(z), pointer<T>(B),
        pointer<T>(scale), add,   pointer<S>(y) + offset};
    kernels_for<S>(y).lora_expand(args, context_for(y, scratch));
  });
}

void lowrank_lora_expand_(const Tensor& base, const Tensor& z, const Tensor& B,
                          const OptionalTensor& idx, const OptionalTensor& start,
                          const OptionalTensor& ids, int64_t offset) {
  check_shape(base, "base", {-1, -1});
  TORCH_CHECK_VALUE(base.is_contiguous(), "base: expected a contiguous tensor to write in place");
  expand_to(base, true, z, B, idx, start, ids, {}, offset);
  mark_written(base);
}

Tensor lowrank_lora_expand(const Tensor& base, const Tensor& z, const Tensor& B,
                           const OptionalTensor& idx, const OptionalTensor& start,
                           const OptionalTensor& ids, int64_t offset) {
  check_shape(base, "base", {-1, -1});
  Tensor y = empty(base.sizes(), base.options());
  y.copy_(base);
  expand_to(y, true, z, B, idx, start, ids, {}, offset);
  return y;
}

// The gradient to x of lora_shrink: rows like those of `like`, zero for those of no adapter.
Tensor lowrank_lora_spread(const Tensor& z, const Tensor& A, const OptionalTensor& idx,
                           const OptionalTensor& start, const OptionalTensor& ids,
                           const OptionalTensor& scale, const Tensor& like) {
  check_shape(like, "like", {z.size(0), A.size(2)});
  Tensor y = empty(like.sizes(), like.options());
  expand_to(y, false, z, A, idx, start, ids, scale, 0);
  return y;
}

Tensor lowrank_lora_outer(const Tensor& z_, const Tensor& x_, const OptionalTensor& idx,
                          const OptionalTensor& start, const OptionalTensor& ids,
                          int64_t adapters) {
  Tensor held;
  const Tensor& x = rows_of(x_, "x", -1, held);
  const Tensor z = dense_typed(z_, "z", wide_type(x), x, "x", {x.size(0), -1});
  const int64_t r = z.size(1);
  TORCH_CHECK_VALUE(r <= kMaxRank, "z: expected at most ", kMaxRank, " columns, got ", r);
  const c10::OptionalDeviceGuard guard(x.device());
  const Routes routes(idx, start, ids, x.size(0), adapters, r, x, "x");
  Tensor G = empty({adapters, r, x.size(1)}, z.options());
  Scratch scratch(x);
  dispatch_storage(x, "x", [&](auto zero) {
    using S = decltype(zero);
    using T = Wide<S>;
    if (G.numel() == 0) return;
    const LoraOuterArgs<S> args{routes.routing(), x.size(1),     x.stride(0),
                                pointer<T>(z),    pointer<S>(x), pointer<T>(G)};
    kernels_for<S>(x).lora_outer(args, context_for(x, scratch));
  });
  return G;
}

#define PYEXT_ROUTE "Tensor? idx, Tensor? start, Tensor? ids"

void define(torch::Library& m) {
  m.def("lowrank_lora_shrink(Tensor x, Tensor A, " PYEXT_ROUTE ", Tensor? scale) -> Tensor z");
  m.def("lowrank_lora_expand(Tensor base, Tensor z, Tensor B, " PYEXT_ROUTE
        ", int offset) -> Tensor y");
  m.def("lowrank_lora_expand_(Tensor(a!) base, Tensor z, Tensor B, " PYEXT_ROUTE
        ", int offset) -> ()");
  m.def("lowrank_lora_spread(Tensor z, Tensor A, " PYEXT_ROUTE
        ", Tensor? scale, Tensor like) -> Tensor g_x");
  m.def("lowrank_lora_outer(Tensor z, Tensor x, " PYEXT_ROUTE ", int adapters) -> Tensor g");
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
