// Front-to-back compositing of one tile per task.
#pragma once

#include "core/simd_rows.h"
#include "splat/channels.h"
#include "splat/cpu/march.h"
#include "splat/cpu/schedule.h"

namespace pyext::PYEXT_ISA {

// Colour sums of a row, in registers: D known when compiled.
template <class T, int D>
struct Channels {
  Lanes<T> sum[D];
  PYEXT_INLINE Channels(T* state, int64_t) {
    for (int k = 0; k < D; ++k) sum[k] = Lanes<T>::load(state + k * kLanes);
  }
  PYEXT_INLINE void add(Lanes<T> weight, const T* features) {
    for (int k = 0; k < D; ++k) sum[k] = fma(weight, Lanes<T>(features[k]), sum[k]);
  }
  PYEXT_INLINE void finish(T* state) {
    for (int k = 0; k < D; ++k) sum[k].store(state + k * kLanes);
  }
};

// Any number of channels: the sums stay in memory, and are read and written once for several
// Gaussians. Each channel still adds them one by one, front to back.
template <class T>
struct Channels<T, 0> {
  static constexpr int kPending = 8;
  T* state;
  int64_t channels;
  int pending = 0;
  Lanes<T> weights[kPending];
  const T* features[kPending];

  PYEXT_INLINE Channels(T* state_, int64_t channels_) : state(state_), channels(channels_) {}
  PYEXT_INLINE void add(Lanes<T> weight, const T* features_) {
    weights[pending] = weight;
    features[pending] = features_;
    if (++pending < kPending) return;
    add_pending<kPending>(0);
    pending = 0;
  }
  PYEXT_INLINE void finish(T*) {
    int first = 0;
    if (pending & 4) add_pending<4>(first), first += 4;
    if (pending & 2) add_pending<2>(first), first += 2;
    if (pending & 1) add_pending<1>(first);
    pending = 0;
  }

 private:
  template <int Count>
  PYEXT_INLINE void add_pending(int first) {
    for (int64_t k = 0; k < channels; ++k) {
      Lanes<T> sum = Lanes<T>::load(state + k * kLanes);
      for (int i = first; i < first + Count; ++i)
        sum = fma(weights[i], Lanes<T>(features[i][k]), sum);
      sum.store(state + k * kLanes);
    }
  }
};

// What one tile carries from block to block.
template <class T>
struct TileState {
  Row<T> rows[kTile];
  Lanes<T> last[kTile];  // integers: positions in tile_ids
  T* colour;             // [16 rows, D, 16 lanes]
};

template <class T, int D>
PYEXT_INLINE void composite_row(const March<T>& args, Block<T>& block, int r, TileState<T>& state) {
  T* colour = state.colour + r * args.channels * kLanes;
  Channels<T, D> sums(colour, args.channels);
  Row<T> row = state.rows[r];
  Lanes<T> last = state.last[r];
  const Lanes<T> alpha_max(args.alpha_max), zero(T(0));
  for (uint64_t bits = touched(block, r); bits && row.live; bits &= bits - 1) {
    const int j = __builtin_ctzll(bits);
    const Step<T> s = step(block, j, alpha_max, row);
    sums.add(select(s.contributes, s.alpha * s.before, zero),
             args.features + block.id[j] * args.channels);
    last = select(s.contributes, Lanes<T>(block.position[j]), last);
  }
  sums.finish(colour);
  state.rows[r] = row;
  state.last[r] = last;
}

// The tile's pixels to the image.
template <class T, int D>
void store_tile(const CompositeArgs<T>& args, const TileAt& at, const TileState<T>& state) {
  const int64_t channels = args.channels;
  const int columns = args.width - at.x < kTile ? args.width - at.x : kTile;
  for (int r = 0; r < kTile && at.y + r < args.height; ++r) {
    const int64_t pixel = (at.image * args.height + at.y + r) * args.width + at.x;
    const T* colour = state.colour + r * channels * kLanes;
    store_integers(state.last[r], args.last + pixel, columns);
    store_strided(state.rows[r].transmittance, args.transmittance + pixel, 1, columns);
    if constexpr (D > 0) {
      if (columns == kTile) {
        Lanes<T> sum[D];
        for (int k = 0; k < D; ++k) sum[k] = Lanes<T>::load(colour + k * kLanes);
        interleave<D>(sum, args.out + pixel * D);
        continue;
      }
    }
    for (int64_t k = 0; k < channels; k += kLanes) {
      const int width = channels - k < kLanes ? int(channels - k) : kLanes;
      Lanes<T> sum[kLanes];
      for (int i = 0; i < width; ++i) sum[i] = Lanes<T>::load(colour + (k + i) * kLanes);
      for (int i = width; i < kLanes; ++i) sum[i] = Lanes<T>(T(0));
      store_block(sum, args.out + pixel * channels + k, channels, width, columns);
    }
  }
}

template <class T, int D>
void composite_tile(const March<T>& args, int64_t tile, TileState<T>& state) {
  const TileAt at = tile_at(tile, args.width, args.height);
  const int64_t end = args.tile_offsets[tile + 1];
  start_rows(args, at, state.rows);
  for (Lanes<T>& last : state.last) last = Lanes<T>(integer_bits<T>(-1));
  for (int64_t i = 0; i < kTile * args.channels * kLanes; ++i) state.colour[i] = T(0);
  Block<T> block;
  bool live = true;
  for (int64_t first = args.tile_offsets[tile]; first < end && live; first += kBlock) {
    load_block(args, at, first, end, block);
    live = false;
    for (int r = 0; r < kTile; ++r) {
      if (!state.rows[r].live) continue;
      composite_row<T, D>(args, block, r, state);
      live |= state.rows[r].live;
    }
  }
  store_tile<T, D>(args, at, state);
}

template <class T>
int64_t tile_count(const CompositeArgs<T>& args) {
  return args.images * ((args.width + kTile - 1) / kTile) * ((args.height + kTile - 1) / kTile);
}

template <class T>
void composite(const CompositeArgs<T>& args, const Context& context) {
  const int64_t colour_size = kTile * args.channels * kLanes;
  auto* colours = static_cast<T*>(
      context.scratch(context.owner, thread_count() * colour_size * int64_t(sizeof(T))));
  const auto run =
      with_channels(args.channels, [](auto d) { return &composite_tile<T, decltype(d)::value>; });
  const March<T> march(args, context);
  for_each_tile_in_parallel(args.tile_offsets, 0, tile_count(args), context,
                            [&](int64_t tile, int worker) {
                              TileState<T> state;
                              state.colour = colours + worker * colour_size;
                              run(march, tile, state);
                            });
}

}  // namespace pyext::PYEXT_ISA
