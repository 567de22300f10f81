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
  const S *a = nullptr, *b = nullptr;
  PairOf() = default;
  PairOf(const InterpArgs<S>& args, int64_t p) : a(row(args, 2 * p)), b(row(args, 2 * p + 1)) {}
  static const S* row(const InterpArgs<S>& args, int64_t entry) {
    const int64_t n = args.index[entry];
    return n >= 0 && n < args.rows ? args.pool + n * args.width : nullptr;
  }
  explicit operator bool() const { return a && b; }
};

// The inner products of a pair, as far as they have come; in how many steps changes no bit of them.
template <class S>
class Products {
 public:
  Products() = default;
  Products(const InterpArgs<S>& args, int64_t p) : pair_(args, p), width_(pair_ ? args.width : 0) {}

  // Takes in the elements before `end`, unless it has: all, or so many that registers are full.
  void advance(int64_t end) {
    end = end < width_ ? end - end % kLanes : width_;
    const S *a = pair_.a + done_, *b = pair_.b + done_;
    V aa = aa_, bb = bb_, ab = ab_;
    for_each_lanes(end - done_, [&](int64_t i, auto lanes) {
      const V x = load_double(a + i, lanes), y = load_double(b + i, lanes);
      aa = fma(x, x, aa);
      bb = fma(y, y, bb);
      ab = fma(x, y, ab);
    });
    aa_ = aa, bb_ = bb, ab_ = ab;
    done_ = end > done_ ? end : done_;
  }

  Gram finish() {
    advance(width_);
    return {aa_.sum(), bb_.sum(), ab_.sum()};
  }

 private:
  using V = Lanes<double>;
  PairOf<S> pair_;
  int64_t width_ = 0, done_ = 0;
  V aa_{0.0}, bb_{0.0}, ab_{0.0};
};

// The weights of a pair's point k.
template <class S>
Weights weights_at(const InterpArgs<S>& args, int64_t p, int64_t k) {
  if (args.status[p]) return {1.0, 0.0};
  const double* g = args.gram + 3 * p;
  return weights_of(args.norm, {g[0], g[1], g[2]}, args.angle[p * args.angles + k]);
}

// Status of a pair of these inner products, and the weights [P, K] of all its points.
template <class S>
void weigh_pair(const InterpArgs<S>& args, int64_t p, const Gram& gram, Weights* weights) {
  double* out = args.gram + 3 * p;
  out[0] = gram.aa, out[1] = gram.bb, out[2] = gram.ab;
  args.status[p] = PairOf<S>(args, p) ? status_of(args.norm, gram, args.min_sin) : kOutside;
  for (int64_t k = 0; k < args.angles; ++k) weights[p * args.angles + k] = weights_at(args, p, k);
}

// Elements [at, at + n) of all points of a pair, of those of its vectors, as stored or widened.
// Calls meanwhile(i) after every point, where i rises from at to at + n.
template <class S, class From, class Meanwhile>
void write_points(const InterpArgs<S>& args, const Weights* weights, int64_t p, int64_t at,
                  int64_t n, const From* a, const From* b, bool stream, Meanwhile meanwhile) {
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
    meanwhile(at + n * (k + 1) / args.angles);
  }
}

// Elements [at, at + n) of a pair's vectors, widened for writing points from z on. A load waits for
// the stores before it whose addresses end in the same twelve bits, and one that streams takes
// long. Loads go through the room twice as fast as stores through z and so meet them once a chunk,
// at a place set by their distance; at this one the stores are the least held up.
template <class S>
class WidenedPair {
 public:
  const Wide<S>*a, *b;

  WidenedPair(const PairOf<S>& pair, int64_t at, int64_t n, const S* z) {
    constexpr uintptr_t kPage = 4096, kApart = 768;
    const uintptr_t beyond = (uintptr_t(z) + kApart - uintptr_t(room_)) % kPage;
    Wide<S>* to = room_ + beyond / kRegisterBytes * kRegisterBytes / sizeof(Wide<S>);
    a = to, b = to + kCircleChunk;
    widen(pair.a + at, n, to);
    widen(pair.b + at, n, to + kCircleChunk);
  }
  WidenedPair(const WidenedPair&) = delete;

 private:
  static void widen(const S* from, int64_t n, Wide<S>* to) {
    for_each_lanes(n, [&](int64_t i, auto lanes) {
      store_narrow<Wide<S>>(load_wide(from + i, lanes), to + i, lanes);
    });
  }

  alignas(kRegisterBytes) Wide<S> room_[2 * kCircleChunk + 4096 / sizeof(Wide<S>)];
};

// Elements [begin, end) of all points of a pair. Calls meanwhile(i) with rising i in between.
template <class S, class Meanwhile>
void combine(const InterpArgs<S>& args, const Weights* weights, int64_t p, int64_t begin,
             int64_t end, bool stream, Meanwhile meanwhile) {
  const PairOf<S> pair(args, p);
  if (!pair) return;
  for (int64_t at = begin; at < end; at += kCircleChunk) {
    const int64_t n = end - at < kCircleChunk ? end - at : kCircleChunk;
    if (sizeof(S) == 2 && args.angles * args.copies > 1) {
      const WidenedPair<S> wide(pair, at, n, args.z + p * args.angles * args.width + at);
      write_points(args, weights, p, at, n, wide.a, wide.b, stream, meanwhile);
    } else {
      write_points(args, weights, p, at, n, pair.a + at, pair.b + at, stream, meanwhile);
    }
  }
}

// Pairs [first, last). The products of a pair are made while the points of the one before are on
// their way to memory, which is what takes the time.
template <class S>
void interp_pairs(const InterpArgs<S>& args, Weights* weights, int64_t first, int64_t last,
                  bool stream) {
  Products<S> products(args, first);
  for (int64_t p = first; p < last; ++p) {
    weigh_pair(args, p, products.finish(), weights);
    products = p + 1 < last ? Products<S>(args, p + 1) : Products<S>();
    combine(args, weights, p, 0, args.width, stream, [&](int64_t i) {
      if (stream) products.advance(i);
    });
  }
  if (stream) end_of_stream();
}

// Pairs fewer than would keep the threads busy: their products first, then chunks of their points.
template <class S>
void interp_chunks(const InterpArgs<S>& args, Weights* weights, bool stream) {
  auto weigh = [&](int64_t p, int) { weigh_pair(args, p, Products<S>(args, p).finish(), weights); };
  parallel_tasks(args.pairs, weigh);
  const int64_t chunks = (args.width + kCircleChunk - 1) / kCircleChunk;
  auto task = [&](int64_t index, int) {
    const int64_t begin = index % chunks * kCircleChunk, left = args.width - begin;
    const int64_t end = begin + (left < kCircleChunk ? left : kCircleChunk);
    combine(args, weights, index / chunks, begin, end, stream, [](int64_t) {});
    if (stream) end_of_stream();
  };
  parallel_tasks(args.pairs * chunks, task);
}

template <class S>
void interp(const InterpArgs<S>& args, const Context& context) {
  const int64_t points = args.pairs * args.angles, threads = thread_count();
  auto* weights =
      static_cast<Weights*>(context.scratch(context.owner, points * int64_t(sizeof(Weights))));
  const int64_t values = args.copies * points * args.width;
  const bool stream = values * int64_t(sizeof(S)) >= kStreamBytes;
  if (args.pairs < 4 * threads) return interp_chunks(args, weights, stream);
  const int64_t run = args.pairs < 8 * threads ? 1 : args.pairs / (8 * threads);
  auto task = [&](int64_t index, int) {
    const int64_t first = index * run, left = args.pairs - first;
    interp_pairs(args, weights, first, first + (left < run ? left : run), stream);
  };
  parallel_tasks((args.pairs + run - 1) / run, task);
}

}  // namespace pyext::PYEXT_ISA
