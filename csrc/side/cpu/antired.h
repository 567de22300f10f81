// Taps merged inside a token. Its features are read once into the cache; all products between them
// and with the guide are one symmetric matrix, and what follows, in the backward too, is a
// combination of the features with small coefficients.
#pragma once

#include "core/parallel.h"
#include "core/simd_half.h"
#include "side/kernels.h"
#include "side/redundancy.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::side;

constexpr int64_t kMergeChunks = 32;  // tokens are taken in at most so many chunks

// Work space of one token: rows of features and two more, padded to whole vectors with zeros.
template <class S>
struct MergeSpace {
  using W = Wide<S>;
  int64_t taps, width;  // K; d padded
  W *rows, *gram, *coefficients, *work;

  // In values of W.
  static int64_t size(int64_t taps, int64_t channels) {
    const int64_t rows = taps + 2;
    return rows * padded(channels) + 2 * rows * rows + Redundancy<W>::size(taps);
  }
  static int64_t padded(int64_t channels) { return (channels + kLanes - 1) / kLanes * kLanes; }

  MergeSpace(int64_t taps_, int64_t channels, W* memory) : taps(taps_), width(padded(channels)) {
    const int64_t count = taps + 2;
    rows = memory;
    gram = rows + count * width;
    coefficients = gram + count * count;
    work = coefficients + count * count;
  }

  W* row(int64_t k) const { return rows + k * width; }
  int64_t stride() const { return taps + 2; }
  Redundancy<W> redundancy(const AntiredArgs<S>& args) const {
    return {taps, stride(), gram, *args.b, args.eps_l1, args.eps_l2, work};
  }

  void load(const AntiredArgs<S>& args, int64_t sample, int64_t token) {
    const int64_t d = args.channels;
    const S* g = args.g + (sample * args.tokens + token) * d;
    for (int64_t k = 0; k < taps; ++k) {
      const S* h =
          args.h + sample * args.sample_stride + k * args.tap_stride + token * args.token_stride;
      for_each_lanes(d, [&](int64_t i, auto lanes) {
        WideLanes<S> f = load_wide(h + i, lanes);
        if (args.a) f = f * load_wide(args.a + k * d + i, lanes);
        if (args.c) f = f + load_wide(args.c + k * d + i, lanes);
        f.store(row(k) + i);
      });
    }
    for_each_lanes(d, [&](int64_t i, auto lanes) {
      (load_wide(args.w + i, lanes) * load_wide(g + i, lanes)).store(row(taps) + i);
    });
  }

  // Products of rows k and l >= k, of the first `count` rows. Tiles keep their sums in registers.
  void multiply(int64_t count) {
    constexpr int kTile = kRegisterBytes == 64 && sizeof(W) == 4 ? 4 : 2;
    for (int64_t k = 0; k < count; k += kTile)
      for (int64_t l = k; l < count; l += kTile) {
        if (k + kTile <= count && l + kTile <= count)
          multiply_tile<kTile>(k, l);
        else
          for (int64_t i = k; i < count && i < k + kTile; ++i)
            for (int64_t j = l; j < count && j < l + kTile; ++j) multiply_tile<1>(i, j);
      }
  }

 private:
  template <int Tile>
  PYEXT_INLINE void multiply_tile(int64_t k, int64_t l) {
    using V = Lanes<W>;
    V sums[Tile][Tile];
    for (auto& line : sums)
      for (V& sum : line) sum = V(W(0));
    for (int64_t at = 0; at < width; at += kLanes) {
      V x[Tile];
      for (int i = 0; i < Tile; ++i) x[i] = V::load(row(k + i) + at);
      for (int j = 0; j < Tile; ++j) {
        const V y = V::load(row(l + j) + at);
        for (int i = 0; i < Tile; ++i) sums[i][j] = fma(x[i], y, sums[i][j]);
      }
    }
    for (int i = 0; i < Tile; ++i)
      for (int j = 0; j < Tile; ++j)
        gram[(k + i) * stride() + l + j] = gram[(l + j) * stride() + k + i] = sums[i][j].sum();
  }
};

// Calls body(sample, token, chunk, space) for every token, a chunk's in order.
template <class S, class Body>
void for_each_token(const AntiredArgs<S>& args, const Context& context, Body body) {
  using W = Wide<S>;
  const int64_t all = args.samples * args.tokens,
                size = MergeSpace<S>::size(args.taps, args.channels);
  const int64_t each = (all + kMergeChunks - 1) / kMergeChunks;
  auto* memory =
      static_cast<W*>(context.scratch(context.owner, thread_count() * size * int64_t(sizeof(W))));
  auto task = [&](int64_t chunk, int worker) {
    MergeSpace<S> space(args.taps, args.channels, memory + worker * size);
    const int64_t end = (chunk + 1) * each < all ? (chunk + 1) * each : all;
    for (int64_t at = chunk * each; at < end; ++at)
      body(at / args.tokens, at % args.tokens, chunk, space);
  };
  parallel_tasks((all + each - 1) / each, task);
}

template <class S>
void antired(const AntiredArgs<S>& args, const Context& context) {
  using V = WideLanes<S>;
  using W = Wide<S>;
  const int64_t d = args.channels, K = args.taps;
  for_each_token(args, context, [&](int64_t sample, int64_t token, int64_t, MergeSpace<S>& s) {
    const int64_t at = sample * args.tokens + token;
    W* beta = args.beta + at * K;
    s.load(args, sample, token);
    s.multiply(K + 1);
    const Redundancy<W> merge = s.redundancy(args);
    for (int64_t k = 0; k < K; ++k) merge.measure(k);
    for (int64_t k = 0; k < K; ++k) merge.score(k);
    const W total = merge.total();
    for (int64_t k = 0; k < K; ++k) beta[k] = merge.q[k] / total;
    for_each_lanes(d, [&](int64_t i, auto lanes) {
      V z = args.add_guide ? load_wide(args.g + at * d + i, lanes) : V(W(0));
      for (int64_t k = 0; k < K; ++k) z = fma(V(beta[k]), V::load(s.row(k) + i), z);
      store_narrow(z, args.z + at * d + i, lanes);
    });
  });
}

// Sums of one chunk of tokens: of the gradients to a, c, w and b, one after another.
template <class S>
struct MergeSums {
  using W = Wide<S>;
  W *a, *c, *w, *b;
  static int64_t size(int64_t taps, int64_t channels) { return (2 * taps + 1) * channels + 1; }
  MergeSums(int64_t taps, int64_t channels, W* memory)
      : a(memory), c(a + taps * channels), w(c + taps * channels), b(w + channels) {}
};

// Row l of `count` of them times coefficients[k, l], added up, for Rows results from k on.
template <int Rows, class S>
PYEXT_INLINE void combine(const MergeSpace<S>& s, int64_t k, int64_t i, WideLanes<S>* sums) {
  using V = WideLanes<S>;
  for (int j = 0; j < Rows; ++j) sums[j] = V(Wide<S>(0));
  for (int64_t l = 0; l < s.taps + 2; ++l) {
    const V x = V::load(s.row(l) + i);
    for (int j = 0; j < Rows; ++j)
      sums[j] = fma(V(s.coefficients[(k + j) * s.stride() + l]), x, sums[j]);
  }
}

template <class S>
void antired_backward_token(const AntiredBackwardArgs<S>& args, int64_t sample, int64_t token,
                            MergeSpace<S>& s, const MergeSums<S>& sums) {
  using V = WideLanes<S>;
  using W = Wide<S>;
  const AntiredArgs<S>& f = args.forward;
  const int64_t d = f.channels, K = f.taps, at = sample * f.tokens + token;
  s.load(f, sample, token);
  for_each_lanes(d, [&](int64_t i, auto lanes) {
    load_wide(args.g_z + at * d + i, lanes).store(s.row(K + 1) + i);
  });
  s.multiply(K + 2);
  const Redundancy<W> merge = s.redundancy(f);
  for (int64_t k = 0; k < K; ++k) merge.measure(k);
  for (int64_t k = 0; k < K; ++k) merge.score(k);
  const W total = merge.total(), mean = merge.mean(total);
  for (int64_t k = 0; k < K; ++k) merge.weigh(k, total, mean);
  for (int64_t k = 0; k < K; ++k) merge.combine(k, total, s.coefficients + k * s.stride());
  for (int64_t k = 0; k < K; ++k) *sums.b += merge.u[k];
  const S* h = f.h + sample * f.sample_stride + token * f.token_stride;
  S* g_h = args.g_h + sample * args.sample_stride + token * args.token_stride;
  for_each_lanes(d, [&](int64_t i, auto lanes) {
    const auto put = [&](int64_t k, V g_f) {
      if (args.g_a) {
        W* sum = sums.a + k * d + i;
        const V x = load_wide(h + k * f.tap_stride + i, lanes);
        store_narrow(fma(g_f, x, load_wide(sum, lanes)), sum, lanes);
      }
      if (args.g_c) {
        W* sum = sums.c + k * d + i;
        store_narrow(g_f + load_wide(sum, lanes), sum, lanes);
      }
      if (f.a) g_f = g_f * load_wide(f.a + k * d + i, lanes);
      store_narrow(g_f, g_h + k * args.tap_stride + i, lanes);
    };
    V g_f[4];
    int64_t k = 0;
    for (; k + 4 <= K; k += 4) {
      combine<4>(s, k, i, g_f);
      for (int j = 0; j < 4; ++j) put(k + j, g_f[j]);
    }
    for (; k < K; ++k) {
      combine<1>(s, k, i, g_f);
      put(k, g_f[0]);
    }
    // The relevant features, by the gradient of their relevance: w and g meet them alike.
    V relevant(W(0));
    for (k = 0; k < K; ++k) relevant = fma(V(merge.u[k]), V::load(s.row(k) + i), relevant);
    const V g = load_wide(f.g + at * d + i, lanes), w = load_wide(f.w + i, lanes);
    V g_g = relevant * w;
    if (f.add_guide) g_g = g_g + V::load(s.row(K + 1) + i);
    store_narrow(g_g, args.g_g + at * d + i, lanes);
    store_narrow(fma(relevant, g, load_wide(sums.w + i, lanes)), sums.w + i, lanes);
  });
}

template <class S>
void antired_backward(const AntiredBackwardArgs<S>& args, const Context& context) {
  using W = Wide<S>;
  const AntiredArgs<S>& f = args.forward;
  const int64_t size = MergeSums<S>::size(f.taps, f.channels);
  auto* memory =
      static_cast<W*>(context.scratch(context.owner, kMergeChunks * size * int64_t(sizeof(W))));
  memset(memory, 0, size_t(kMergeChunks * size) * sizeof(W));
  for_each_token(f, context,
                 [&](int64_t sample, int64_t token, int64_t chunk, MergeSpace<S>& space) {
                   const MergeSums<S> sums(f.taps, f.channels, memory + chunk * size);
                   antired_backward_token(args, sample, token, space, sums);
                 });
  const auto add = [&](const W* from, int64_t count, W* to) {
    auto task = [&](int64_t block, int) {
      const int64_t i = block * kLanes, left = count - i;
      const int wide = int(left < kLanes ? left : kLanes);
      Lanes<W> sum(W(0));
      for (int64_t chunk = 0; chunk < kMergeChunks; ++chunk)
        sum = sum + load_wide(from + chunk * size + i, wide);
      store_narrow(sum, to + i, wide);
    };
    parallel_tasks((count + kLanes - 1) / kLanes, task);
  };
  const MergeSums<S> first(f.taps, f.channels, memory);
  if (args.g_a) add(first.a, f.taps * f.channels, args.g_a);
  if (args.g_c) add(first.c, f.taps * f.channels, args.g_c);
  add(first.w, f.channels, args.g_w);
  add(first.b, 1, args.g_b);
}

}  // namespace pyext::PYEXT_ISA
