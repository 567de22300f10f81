// Points on the circles through pairs of vectors: inner products first, then all points of a pair.
#pragma once

#include "circle/kernels.h"
#include "core/parallel.h"
#include "core/simd_double.h"
#include "core/simd_stream.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::circle;

constexpr int64_t kCircleChunk = 2048;  // elements of both vectors that stay in the first cache

// The two vectors of pair p; null where an index is outside the pool.
template <class S>
struct PairOf {
  const S *a, *b;
  PairOf(const InterpArgs<S>& args, int64_t p) : a(row(args, 2 * p)), b(row(args, 2 * p + 1)) {}
  static const S* row(const InterpArgs<S>& args, int64_t entry) {
    const int64_t n = args.index[entry];
    return n >= 0 && n < args.rows ? args.pool + n * args.width : nullptr;
  }
  explicit operator bool() const { return a && b; }
};

template <class S>
Gram gram_of(const S* a, const S* b, int64_t width) {
  using V = Lanes<double>;
  V aa(0.0), bb(0.0), ab(0.0);
  for_each_lanes(width, [&](int64_t i, auto lanes) {
    const V x = load_double(a + i, lanes), y = load_double(b + i, lanes);
    aa = fma(x, x, aa);
    bb = fma(y, y, bb);
    ab = fma(x, y, ab);
  });
  return {aa.sum(), bb.sum(), ab.sum()};
}

// Inner products and status of a pair.
template <class S>
void measure_pair(const InterpArgs<S>& args, int64_t p) {
  const PairOf<S> pair(args, p);
  const Gram gram = pair ? gram_of(pair.a, pair.b, args.width) : Gram{0.0, 0.0, 0.0};
  double* out = args.gram + 3 * p;
  out[0] = gram.aa, out[1] = gram.bb, out[2] = gram.ab;
  args.status[p] = pair ? status_of(args.norm, gram, args.min_sin) : kOutside;
}

// The weights of a pair's point k.
template <class S>
Weights weights_at(const InterpArgs<S>& args, int64_t p, int64_t k) {
  if (args.status[p]) return {1.0, 0.0};
  const double* g = args.gram + 3 * p;
  return weights_of(args.norm, {g[0], g[1], g[2]}, args.angle[p * args.angles + k]);
}

// Inner products, status, and the weights [P, K] of all points of a pair.
template <class S>
void weigh_pair(const InterpArgs<S>& args, int64_t p, Weights* weights) {
  measure_pair(args, p);
  for (int64_t k = 0; k < args.angles; ++k) weights[p * args.angles + k] = weights_at(args, p, k);
}

// Elements [at, at + n) of all points of a pair, of those of its vectors, as stored or widened.
template <class S, class From>
void write_points(const InterpArgs<S>& args, const Weights* weights, int64_t p, int64_t at,
                  int64_t n, const From* a, const From* b, bool stream) {
  using V = WideLanes<S>;
  using T = Wide<S>;
  const int64_t copy = args.pairs * args.angles * args.width;
  for (int64_t k = 0; k < args.angles; ++k) {
    const Weights w = weights[p * args.angles + k];
    const V first{T(w.first)}, second{T(w.second)};
    S* z = args.z + (p * args.angles + k) * args.width + at;
    const bool only_first = w.second == 0.0;  // then whatever b holds must not matter
    for (int64_t c = 0; c < args.copies; ++c)
      write_lanes<S>(z + c * copy, n, stream, [&](int64_t i, auto lanes) {
        const V x = first * load_wide(a + i, lanes);
        return only_first ? x : fma(second, load_wide(b + i, lanes), x);
      });
  }
}

template <class S>
void widen_elements(const S* from, int64_t n, Wide<S>* to) {
  for_each_lanes(n, [&](int64_t i, auto lanes) {
    store_narrow<Wide<S>>(load_wide(from + i, lanes), to + i, lanes);
  });
}

// Elements [begin, end) of all points of a pair.
template <class S>
void combine(const InterpArgs<S>& args, const Weights* weights, int64_t p, int64_t begin,
             int64_t end, bool stream) {
  const PairOf<S> pair(args, p);
  if (!pair) return;
  for (int64_t at = begin; at < end; at += kCircleChunk) {
    const int64_t n = end - at < kCircleChunk ? end - at : kCircleChunk;
    if (sizeof(S) == 2 && args.angles * args.copies > 1) {
      Wide<S> a[kCircleChunk], b[kCircleChunk];
      widen_elements(pair.a + at, n, a);
      widen_elements(pair.b + at, n, b);
      write_points(args, weights, p, at, n, a, b, stream);
    } else {
      write_points(args, weights, p, at, n, pair.a + at, pair.b + at, stream);
    }
  }
  if (stream) end_of_stream();
}

template <class S>
void interp(const InterpArgs<S>& args, const Context& context) {
  const int64_t points = args.pairs * args.angles;
  auto* weights =
      static_cast<Weights*>(context.scratch(context.owner, points * int64_t(sizeof(Weights))));
  const int64_t values = args.copies * points * args.width;
  const bool stream = values * int64_t(sizeof(S)) >= kStreamBytes;
  if (args.pairs >= 4 * thread_count()) {  // a pair's vectors are still near when its points come
    auto task = [&](int64_t p, int) {
      weigh_pair(args, p, weights);
      combine(args, weights, p, 0, args.width, stream);
    };
    return parallel_tasks(args.pairs, task);
  }
  auto weigh = [&](int64_t p, int) { weigh_pair(args, p, weights); };
  parallel_tasks(args.pairs, weigh);
  const int64_t chunks = (args.width + kCircleChunk - 1) / kCircleChunk;
  auto task = [&](int64_t index, int) {
    const int64_t begin = index % chunks * kCircleChunk, end = begin + kCircleChunk;
    combine(args, weights, index / chunks, begin, end < args.width ? end : args.width, stream);
  };
  parallel_tasks(args.pairs * chunks, task);
}

}  // namespace pyext::PYEXT_ISA
