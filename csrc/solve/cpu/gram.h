// Gram and cross-Gram matrices of rows, summed in double; products in double, or in float by
// chunks.
#pragma once

#include <cmath>

#include "core/simd_half.h"
#include "solve/cpu/tiles.h"
#include "solve/kernels.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::solve;

constexpr int64_t kPackPanels = 8;                  // that one task packs
constexpr int64_t kPackedBytes = int64_t(1) << 25;  // of both operands, about: they stay in cache

// Up to sixteen values in T, which is no narrower than they are; zeros beyond `lanes`.
template <class T, class S, class Lanes_>
PYEXT_INLINE Lanes<T> load_as(const S* p, Lanes_ lanes) {
  if constexpr (sizeof(T) == 8)
    return to_double(load_wide(p, lanes));
  else
    return load_wide(p, lanes);
}

// Rows [first, first + count) as panels of sixteen columns, each row times scale[row].
template <class T>
struct Packed {
  T* values;
  int64_t panels, step;  // values from panel to panel
};

template <class S, class T>
inline void pack_panels(const Rows& rows, int64_t first, int64_t count, const double* scale,
                        const Packed<T>& out, int64_t begin, int64_t end) {
  for (int64_t k = 0; k < count; ++k) {
    const S* x = row_of<S>(rows, first + k);
    T* target = out.values + k * kLanes;
    const Lanes<T> by(T(scale[k]));
    const bool counts = scale[k] != 0;
    for (int64_t p = begin; p < end; ++p) {
      const int64_t left = rows.width - p * kLanes;
      if (!counts)
        Lanes<T>(T(0)).store(target + p * out.step);
      else if (left >= kLanes)
        (load_as<T>(x + p * kLanes, AllLanes()) * by).store(target + p * out.step);
      else
        (load_as<T>(x + p * kLanes, FirstLanes(int(left))) * by).store(target + p * out.step);
    }
  }
}

template <class T>
inline int64_t pack_tasks(const Packed<T>& packed) {
  return (packed.panels + kPackPanels - 1) / kPackPanels;
}
template <class T>
inline void pack_task(const Rows& rows, int64_t first, int64_t count, const double* scale,
                      const Packed<T>& out, int64_t task) {
  const int64_t begin = task * kPackPanels;
  const int64_t end = begin + kPackPanels < out.panels ? begin + kPackPanels : out.panels;
  for_storage(rows.type, [&](auto zero) {
    using S = decltype(zero);
    if constexpr (sizeof(Wide<S>) <= sizeof(T))  // others do not come
      pack_panels<S, T>(rows, first, count, scale, out, begin, end);
  });
}

// sums[s] += left_s^T diag(weight) right_s, products in T. Without `left` both are `right`, each
// row times the root of its weight, and the lower triangle is summed.
template <class T>
inline void accumulate(const Rows* left, const Rows& right, const Segments& segments, double* sums,
                       const Context& context) {
  const int64_t p = left ? left->width : right.width, d = right.width;
  if (p == 0 || d == 0) return;
  const int64_t panels = panels_of(d) + (left ? panels_of(p) : 0);
  int64_t round = kPackedBytes / (panels * kLanes * int64_t(sizeof(T))) / kChunk * kChunk;
  round = round < kChunk ? kChunk : round > 8 * kChunk ? 8 * kChunk : round;
  const int64_t most = right.count < round ? right.count : round;
  // More than a power of two: the chunks and rows of neighbouring panels lie in other cache sets.
  const int64_t step = (most + kChunk + 1) * kLanes;
  auto* memory = static_cast<T*>(context.scratch(context.owner, panels * step * sizeof(T)));
  auto* scales = static_cast<double*>(context.scratch(context.owner, 2 * round * 8));
  double *ones = scales, *scale = scales + round;
  const Packed<T> of_right{memory, panels_of(d), step};
  const Packed<T> of_left =
      left ? Packed<T>{memory + panels_of(d) * step, panels_of(p), step} : of_right;
  for (int64_t s = 0; s < segments.count; ++s) {
    const Sums out{sums + s * p * d, d, p, d, !left};
    const Tiles tiles(out);
    const int64_t end = last_row(segments, s, right.count);
    for (int64_t first = first_row(segments, s); first < end; first += round) {
      const int64_t count = end - first < round ? end - first : round;
      for (int64_t k = 0; k < count; ++k) {
        const double weight = weight_of(segments.weight, first + k);
        ones[k] = weight > 0 ? 1.0 : 0.0;
        scale[k] = left ? weight : std::sqrt(weight);
      }
      const int64_t of_right_tasks = pack_tasks(of_right);
      for_tasks(true, of_right_tasks + (left ? pack_tasks(of_left) : 0), [&](int64_t task, int) {
        if (task < of_right_tasks) return pack_task(right, first, count, scale, of_right, task);
        pack_task(*left, first, count, ones, of_left, task - of_right_tasks);
      });
      for_tasks(true, tiles.count(), [&](int64_t task, int) {
        int64_t row, column;
        tiles.at(task, row, column);
        for (int64_t k = 0; k < count; k += kChunk)
          add_tile<false>(out, row * kTile, column * kTile, of_left.values + k * kLanes,
                          of_right.values + k * kLanes, step,
                          count - k < kChunk ? count - k : kChunk);
      });
    }
  }
}

inline void gram(const GramArgs& args, const Context& context) {
  const auto run = args.products == Storage::f32 ? accumulate<float> : accumulate<double>;
  run(nullptr, args.x, args.segments, args.gram, context);
}
inline void cross(const CrossArgs& args, const Context& context) {
  const auto run = args.products == Storage::f32 ? accumulate<float> : accumulate<double>;
  run(&args.left, args.right, args.segments, args.cross, context);
}

}  // namespace pyext::PYEXT_ISA
