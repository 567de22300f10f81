// Guided pooling of a map's windows, and its gradient. A strip of windows is read twice, once for
// their weights and once for their means; it is as wide as fits into the second-level cache.
#pragma once

#include "core/parallel.h"
#include "core/simd_half.h"
#include "side/kernels.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::side;

// Neighbouring windows of one row of them, over all channels.
template <class S>
struct Strip {
  const GuidedPoolArgs<S>& args;
  int64_t batch, row, first, windows, r, columns;  // columns: of the map

  Strip(const GuidedPoolArgs<S>& args_, int64_t batch_, int64_t row_, int64_t first_,
        int64_t windows_)
      : args(args_),
        batch(batch_),
        row(row_),
        first(first_),
        windows(windows_),
        r(args_.height / args_.rows),
        columns(windows_ * r) {}

  // Places in x (and its gradient), guide, y and score.
  int64_t in_map(int64_t channel) const {
    return ((batch * args.channels + channel) * args.height + row * r) * args.width + first * r;
  }
  int64_t in_guide(int64_t channel) const {
    return ((batch * args.channels + channel) * args.rows + row) * args.columns + first;
  }
  int64_t in_tokens(int64_t channel) const {
    return ((batch * args.rows + row) * args.columns + first) * args.channels + channel;
  }
  int64_t in_score() const { return (batch * args.height + row * r) * args.width + first * r; }
};

// A value a window, `stride` apart, repeated over the window's columns.
template <class S>
void spread(const Strip<S>& strip, const S* values, int64_t stride, Wide<S>* wide) {
  for (int64_t j = 0; j < strip.windows; ++j) {
    const Wide<S> value = widen(values[j * stride]);
    for (int64_t i = 0; i < strip.r; ++i) wide[j * strip.r + i] = value;
  }
}

// places [r, columns] += values [columns] times one channel of the map.
template <class S>
void add_products(const Strip<S>& strip, const S* x, const Wide<S>* values, Wide<S>* places) {
  using V = WideLanes<S>;
  for (int64_t row = 0; row < strip.r; ++row)
    for_each_lanes(strip.columns, [&](int64_t i, auto lanes) {
      Wide<S>* at = places + row * strip.columns + i;
      const V products =
          fma(load_wide(values + i, lanes), load_wide(x + row * strip.args.width + i, lanes),
              load_wide(at, lanes));
      store_narrow<Wide<S>>(products, at, lanes);
    });
}

// For each window the sum of weights [r, columns] times one channel of the map; they are stored
// `stride` apart.
template <class S>
void weighted_sums(const Strip<S>& strip, const S* x, const Wide<S>* weights, Wide<S>* sums, S* out,
                   int64_t stride) {
  using V = WideLanes<S>;
  for_each_lanes(strip.columns, [&](int64_t i, auto lanes) {
    V sum(Wide<S>(0));
    for (int64_t row = 0; row < strip.r; ++row)
      sum = fma(load_wide(weights + row * strip.columns + i, lanes),
                load_wide(x + row * strip.args.width + i, lanes), sum);
    store_narrow<Wide<S>>(sum, sums + i, lanes);
  });
  for (int64_t j = 0; j < strip.windows; ++j) {
    Wide<S> sum(0);
    for (int64_t i = 0; i < strip.r; ++i) sum += sums[j * strip.r + i];
    out[j * stride] = narrow<S>(sum);
  }
}

// Calls body(place) for the places [r, columns] of window j.
template <class S, class Body>
PYEXT_INLINE void for_each_place(const Strip<S>& strip, int64_t j, Body body) {
  for (int64_t row = 0; row < strip.r; ++row)
    for (int64_t i = j * strip.r; i < (j + 1) * strip.r; ++i) body(row * strip.columns + i);
}

// Sum of the positive scores of window j, plus eps.
template <class S>
Wide<S> norm_of(const Strip<S>& strip, const Wide<S>* scores, int64_t j) {
  Wide<S> sum(0);
  for_each_place(strip, j, [&](int64_t at) { sum += scores[at] > 0 ? scores[at] : Wide<S>(0); });
  return sum + Wide<S>(strip.args.eps);
}

// Weights of the places of all windows from their scores, in place.
template <class S>
void weigh(const Strip<S>& strip, Wide<S>* scores) {
  const Wide<S> even = Wide<S>(1) / Wide<S>(strip.r * strip.r);
  for (int64_t j = 0; j < strip.windows; ++j) {
    const Wide<S> scale = Wide<S>(1) / norm_of(strip, scores, j);
    for_each_place(strip, j, [&](int64_t at) {
      scores[at] = (scores[at] > 0 ? scores[at] * scale : Wide<S>(0)) + even;
    });
  }
}

// From the gradients of the weights to those of the scores, in place.
template <class S>
void weigh_backward(const Strip<S>& strip, const Wide<S>* scores, Wide<S>* g) {
  for (int64_t j = 0; j < strip.windows; ++j) {
    const Wide<S> scale = Wide<S>(1) / norm_of(strip, scores, j);
    Wide<S> mean(0);
    for_each_place(strip, j, [&](int64_t at) {
      mean += scores[at] > 0 ? scores[at] * scale * g[at] : Wide<S>(0);
    });
    for_each_place(strip, j, [&](int64_t at) {
      g[at] = scores[at] > 0 ? (g[at] - mean) * scale : Wide<S>(0);
    });
  }
}

template <class S>
void copy_places(const Strip<S>& strip, const Wide<S>* from, int64_t from_stride, Wide<S>* to,
                 int64_t to_stride) {
  for (int64_t row = 0; row < strip.r; ++row)
    memcpy(to + row * to_stride, from + row * from_stride, size_t(strip.columns) * sizeof(Wide<S>));
}

// Calls body(strip, buffer) for all strips; the buffer holds [r + 1, columns] values `arrays`
// times.
template <class S, class Body>
void for_each_strip(const GuidedPoolArgs<S>& args, const Context& context, int arrays, Body body) {
  constexpr int64_t kStripBytes = 256 << 10;
  const int64_t r = args.height / args.rows;
  const int64_t fitting = kStripBytes / (args.channels * r * r * int64_t(sizeof(S)));
  const int64_t step = fitting < 1 ? 1 : fitting < args.columns ? fitting : args.columns;
  const int64_t buffer = arrays * (r + 1) * step * r;
  auto* buffers = static_cast<Wide<S>*>(
      context.scratch(context.owner, thread_count() * buffer * int64_t(sizeof(Wide<S>))));
  auto task = [&](int64_t index, int worker) {
    for (int64_t first = 0; first < args.columns; first += step) {
      const int64_t windows = args.columns - first < step ? args.columns - first : step;
      body(Strip<S>(args, index / args.rows, index % args.rows, first, windows),
           buffers + worker * buffer);
    }
  };
  parallel_tasks(args.batches * args.rows, task);
}

template <class S>
void guided_pool(const GuidedPoolArgs<S>& args, const Context& context) {
  for_each_strip(args, context, 1, [&](const Strip<S>& strip, Wide<S>* places) {
    const int64_t count = strip.r * strip.columns;
    Wide<S>* line = places + count;
    for (int64_t i = 0; i < count; ++i) places[i] = Wide<S>(0);
    for (int64_t c = 0; c < args.channels; ++c) {
      spread(strip, args.guide + strip.in_guide(c), 1, line);
      add_products(strip, args.x + strip.in_map(c), line, places);
    }
    copy_places(strip, places, strip.columns, args.score + strip.in_score(), args.width);
    weigh(strip, places);
    for (int64_t c = 0; c < args.channels; ++c)
      weighted_sums(strip, args.x + strip.in_map(c), places, line, args.y + strip.in_tokens(c),
                    args.channels);
  });
}

// g_x = weights g_y + g_scores guide, for one channel.
template <class S>
void map_gradient(const Strip<S>& strip, const Wide<S>* weights, const Wide<S>* g_y,
                  const Wide<S>* g_scores, const Wide<S>* guide, S* g_x) {
  for (int64_t row = 0; row < strip.r; ++row)
    for_each_lanes(strip.columns, [&](int64_t i, auto lanes) {
      const int64_t at = row * strip.columns + i;
      const auto direct = load_wide(weights + at, lanes) * load_wide(g_y + i, lanes);
      store_narrow<S>(fma(load_wide(g_scores + at, lanes), load_wide(guide + i, lanes), direct),
                      g_x + row * strip.args.width + i, lanes);
    });
}

template <class S>
void guided_pool_backward(const GuidedPoolBackwardArgs<S>& args, const Context& context) {
  const GuidedPoolArgs<S>& f = args.forward;
  for_each_strip(f, context, 2, [&](const Strip<S>& strip, Wide<S>* g_places) {
    const int64_t count = strip.r * strip.columns;
    Wide<S>*line = g_places + count, *places = line + strip.columns, *second = places + count;
    copy_places(strip, f.score + strip.in_score(), f.width, places, strip.columns);
    for (int64_t i = 0; i < count; ++i) g_places[i] = Wide<S>(0);
    for (int64_t c = 0; c < f.channels; ++c) {
      spread(strip, args.g_y + strip.in_tokens(c), f.channels, line);
      add_products(strip, f.x + strip.in_map(c), line, g_places);
    }
    weigh_backward(strip, places, g_places);
    for (int64_t c = 0; c < f.channels; ++c)
      weighted_sums(strip, f.x + strip.in_map(c), g_places, line, args.g_guide + strip.in_guide(c),
                    1);
    if (!args.g_x) return;
    weigh(strip, places);
    for (int64_t c = 0; c < f.channels; ++c) {
      spread(strip, args.g_y + strip.in_tokens(c), f.channels, line);
      spread(strip, f.guide + strip.in_guide(c), 1, second);
      map_gradient(strip, places, line, g_places, second, args.g_x + strip.in_map(c));
    }
  });
}

}  // namespace pyext::PYEXT_ISA
