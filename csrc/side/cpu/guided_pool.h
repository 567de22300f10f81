// Guided pooling of a map's windows, and its gradient. A strip of windows is read once, for their
// weights, and copied: channels lie so far apart that a cache would not keep them. Their means are
// made of the copy, which fits into the second-level cache.
#pragma once

#include <type_traits>

#include "core/parallel.h"
#include "side/cpu/windows.h"
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
  const auto repeat = [&](auto r) {
    for (int64_t j = 0; j < strip.windows; ++j) {
      const Wide<S> value = widen(values[j * stride]);
      for (int64_t i = 0; i < r; ++i) wide[j * r + i] = value;
    }
  };
  switch (strip.r) {  // known to the compiler
    case 2:
      return repeat(std::integral_constant<int64_t, 2>());
    case 4:
      return repeat(std::integral_constant<int64_t, 4>());
    case 8:
      return repeat(std::integral_constant<int64_t, 8>());
    default:
      return repeat(strip.r);
  }
}

// places [r, columns] += values [columns] times one channel of the map, which is copied.
template <class S>
void add_products(const Strip<S>& strip, const S* x, const Wide<S>* values, Wide<S>* places,
                  S* copy) {
  for_each_lanes(strip.columns, [&](int64_t i, auto lanes) {
    const WideLanes<S> value = load_wide(values + i, lanes);
    for (int64_t row = 0; row < strip.r; ++row) {
      const WideLanes<S> map = load_wide(x + row * strip.args.width + i, lanes);
      const int64_t at = row * strip.columns + i;
      store_narrow<S>(map, copy + at, lanes);
      store_narrow<Wide<S>>(fma(value, map, load_wide(places + at, lanes)), places + at, lanes);
    }
  });
}

// Asks for one channel of the strip, for which the processor would not ask by itself: it lies a
// whole plane behind the one before.
template <class S>
PYEXT_INLINE void prefetch(const Strip<S>& strip, const S* x) {
  constexpr int64_t kLine = 64 / int64_t(sizeof(S));
  for (int64_t row = 0; row < strip.r; ++row)
    for (int64_t i = 0; i < strip.columns; i += kLine)
      __builtin_prefetch(x + row * strip.args.width + i);
}
constexpr int64_t kPrefetched = 3;  // channels ahead

// The sum of weights [r, columns] times the map, for each window and sixteen channels at a time:
// calls store(channel, count, window, sums).
template <class S, class Store>
void weighted_sums(const Strip<S>& strip, const S* copy, const Wide<S>* weights, Wide<S>* sums,
                   Store store) {
  using V = WideLanes<S>;
  const int64_t C = strip.args.channels, place_count = strip.r * strip.columns;
  for (int64_t channel = 0; channel < C; channel += kLanes) {
    const int count = int(C - channel < kLanes ? C - channel : kLanes);
    for (int64_t j = 0; j < strip.windows; ++j) V(Wide<S>(0)).store(sums + j * kLanes);
    for_each_lanes(strip.columns, [&](int64_t i, auto lanes) {
      const auto values = [&](int c) {
        const S* map = copy + (channel + c) * place_count + i;
        V sum(Wide<S>(0));
        for (int64_t row = 0; row < strip.r; ++row)
          sum = fma(load_wide(weights + row * strip.columns + i, lanes),
                    load_wide(map + row * strip.columns, lanes), sum);
        return sum;
      };
      by_window<V>(i, lanes, count, strip.r, values, [&](int64_t window, V value) {
        Wide<S>* at = sums + window * kLanes;
        (V::load(at) + value).store(at);
      });
    });
    for (int64_t j = 0; j < strip.windows; ++j)
      store(channel, count, j, V::load(sums + j * kLanes));
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

// One worker's memory for a strip.
template <class S>
struct StripMemory {
  Wide<S>*places, *more_places;  // [r, columns]
  Wide<S>*line, *more_line;      // [columns]
  Wide<S>* sums;                 // [windows, kLanes]
  S* copy;                       // [channels, r, columns]

  static int64_t bytes(int64_t channels, int64_t r, int64_t windows) {
    const int64_t wide = 2 * (r + 1) * r * windows + windows * kLanes;
    const int64_t all =
        wide * int64_t(sizeof(Wide<S>)) + channels * r * r * windows * int64_t(sizeof(S));
    return (all + 63) / 64 * 64;
  }
  StripMemory(char* memory, int64_t r, int64_t windows)
      : places(reinterpret_cast<Wide<S>*>(memory)),
        more_places(places + r * r * windows),
        line(more_places + r * r * windows),
        more_line(line + r * windows),
        sums(more_line + r * windows),
        copy(reinterpret_cast<S*>(sums + windows * kLanes)) {}
};

// Calls body(strip, memory) for all strips.
template <class S, class Body>
void for_each_strip(const GuidedPoolArgs<S>& args, const Context& context, Body body) {
  constexpr int64_t kStripBytes = 256 << 10;
  const int64_t r = args.height / args.rows;
  const int64_t fitting = kStripBytes / (args.channels * r * r * int64_t(sizeof(S)));
  const int64_t step = fitting < 1 ? 1 : fitting < args.columns ? fitting : args.columns;
  const int64_t bytes = StripMemory<S>::bytes(args.channels, r, step);
  auto* memory = static_cast<char*>(context.scratch(context.owner, thread_count() * bytes));
  auto task = [&](int64_t index, int worker) {
    for (int64_t first = 0; first < args.columns; first += step) {
      const int64_t windows = args.columns - first < step ? args.columns - first : step;
      body(Strip<S>(args, index / args.rows, index % args.rows, first, windows),
           StripMemory<S>(memory + worker * bytes, r, step));
    }
  };
  parallel_tasks(args.batches * args.rows, task);
}

template <class S>
void guided_pool(const GuidedPoolArgs<S>& args, const Context& context) {
  for_each_strip(args, context, [&](const Strip<S>& strip, const StripMemory<S>& m) {
    const int64_t count = strip.r * strip.columns;
    for (int64_t i = 0; i < count; ++i) m.places[i] = Wide<S>(0);
    for (int64_t c = 0; c < args.channels; ++c) {
      if (c + kPrefetched < args.channels) prefetch(strip, args.x + strip.in_map(c + kPrefetched));
      spread(strip, args.guide + strip.in_guide(c), 1, m.line);
      add_products(strip, args.x + strip.in_map(c), m.line, m.places, m.copy + c * count);
    }
    copy_places(strip, m.places, strip.columns, args.score + strip.in_score(), args.width);
    weigh(strip, m.places);
    S* y = args.y + strip.in_tokens(0);
    weighted_sums(strip, m.copy, m.places, m.sums,
                  [&](int64_t c, int channels, int64_t window, WideLanes<S> sums) {
                    store_narrow<S>(sums, y + window * args.channels + c, FirstLanes(channels));
                  });
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
  for_each_strip(f, context, [&](const Strip<S>& strip, const StripMemory<S>& m) {
    const int64_t count = strip.r * strip.columns;
    Wide<S>*places = m.places, *g_places = m.more_places;
    copy_places(strip, f.score + strip.in_score(), f.width, places, strip.columns);
    for (int64_t i = 0; i < count; ++i) g_places[i] = Wide<S>(0);
    for (int64_t c = 0; c < f.channels; ++c) {
      if (c + kPrefetched < f.channels) prefetch(strip, f.x + strip.in_map(c + kPrefetched));
      spread(strip, args.g_y + strip.in_tokens(c), f.channels, m.line);
      add_products(strip, f.x + strip.in_map(c), m.line, g_places, m.copy + c * count);
    }
    weigh_backward(strip, places, g_places);
    S* g_guide = args.g_guide + strip.in_guide(0);
    weighted_sums(strip, m.copy, g_places, m.sums,
                  [&](int64_t c, int channels, int64_t window, WideLanes<S> sums) {
                    Wide<S> each[kLanes];
                    sums.store(each);
                    for (int j = 0; j < channels; ++j)
                      g_guide[(c + j) * f.rows * f.columns + window] = narrow<S>(each[j]);
                  });
    if (!args.g_x) return;
    weigh(strip, places);
    for (int64_t c = 0; c < f.channels; ++c) {
      spread(strip, args.g_y + strip.in_tokens(c), f.channels, m.line);
      spread(strip, f.guide + strip.in_guide(c), 1, m.more_line);
      map_gradient(strip, places, m.line, g_places, m.more_line, args.g_x + strip.in_map(c));
    }
  });
}

}  // namespace pyext::PYEXT_ISA
