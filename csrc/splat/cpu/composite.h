// Front-to-back compositing of one tile per task.
#pragma once

#include "splat/cpu/march.h"
#include "splat/cpu/schedule.h"

namespace pyext::PYEXT_ISA {

// Colour sums of a row, in registers: D known when compiled.
template <class T, int D>
struct FixedChannels {
  Lanes<T> sum[D];
  PYEXT_INLINE FixedChannels(T* state, int64_t) {
    for (int k = 0; k < D; ++k) sum[k] = Lanes<T>::load(state + k * kLanes);
  }
  PYEXT_INLINE void add(Lanes<T> weight, const T* features) {
    for (int k = 0; k < D; ++k) sum[k] = fma(weight, Lanes<T>(features[k]), sum[k]);
  }
  PYEXT_INLINE void finish(T* state) {
    for (int k = 0; k < D; ++k) sum[k].store(state + k * kLanes);
  }
};

// Any number of channels: the sums stay in memory.
template <class T>
struct FixedChannels<T, 0> {
  T* state;
  int64_t channels;
  PYEXT_INLINE FixedChannels(T* state_, int64_t channels_) : state(state_), channels(channels_) {}
  PYEXT_INLINE void add(Lanes<T> weight, const T* features) {
    for (int64_t k = 0; k < channels; ++k)
      fma(weight, Lanes<T>(features[k]), Lanes<T>::load(state + k * kLanes))
          .store(state + k * kLanes);
  }
  PYEXT_INLINE void finish(T*) {}
};

// Scratch of one worker: colour sums [16 rows, D, 16 lanes] and the last contributors.
template <class T>
struct TileState {
  T* colour;
  Row<T> rows[kTile];
  alignas(64) int32_t last[kTile][kLanes];
};

template <class T, int D>
void composite_row(const CompositeArgs<T>& args, const Block<T>& block, int64_t first,
                   uint64_t bits, Lanes<T> x, Lanes<T> alpha_max, Row<T>& row, T* colour,
                   int32_t* last) {
  FixedChannels<T, D> sums(colour, args.channels);
  Row<T> state = row;
  typename Lanes<T>::Bool any = Lanes<T>::Bool::none();
  Lanes<T> position(T(-1));
  while (bits) {
    const int j = __builtin_ctzll(bits);
    bits &= bits - 1;
    const Step<T> s = step(block, j, x, alpha_max, state);
    sums.add(select(s.contributes, s.alpha * s.before, Lanes<T>(T(0))),
             args.features + block.id[j] * args.channels);
    position = select(s.contributes, Lanes<T>(T(j)), position);
    any = any | s.contributes;
    if (!state.live.any()) break;
  }
  sums.finish(colour);
  row = state;
  if (!any.any()) return;
  T at[kLanes];
  position.store(at);
  for (int i = 0; i < kLanes; ++i)
    if (at[i] >= T(0)) last[i] = int32_t(first + int64_t(at[i]));
}

template <class T, int D>
void composite_tile(const CompositeArgs<T>& args, int64_t tile, TileState<T>& state) {
  const TileAt at = tile_at(tile, args.width, args.height);
  const int64_t end = args.tile_offsets[tile + 1], channels = args.channels;
  const Lanes<T> x = pixel_centres<T>(), alpha_max(args.alpha_max);
  start_rows(args, at, state.rows);
  for (int64_t i = 0; i < kTile * channels * kLanes; ++i) state.colour[i] = T(0);
  for (int r = 0; r < kTile; ++r)
    for (int i = 0; i < kLanes; ++i) state.last[r][i] = -1;

  Block<T> block;
  bool alive = true;
  for (int64_t first = args.tile_offsets[tile]; first < end && alive; first += kBlock) {
    load_block(args, at, first, end, block);
    alive = false;
    for (int r = 0; r < kTile; ++r) {
      if (!state.rows[r].live.any()) continue;
      composite_row<T, D>(args, block, first, touched(block, r), x, alpha_max, state.rows[r],
                          state.colour + r * channels * kLanes, state.last[r]);
      alive |= state.rows[r].live.any();
    }
  }

  const int columns = args.width - at.x < kTile ? args.width - at.x : kTile;
  for (int r = 0; r < kTile && at.y + r < args.height; ++r) {
    const int64_t pixel = (at.image * args.height + at.y + r) * args.width + at.x;
    T transmittance[kLanes];
    state.rows[r].transmittance.store(transmittance);
    const T* colour = state.colour + r * channels * kLanes;
    for (int i = 0; i < columns; ++i) {
      args.transmittance[pixel + i] = transmittance[i];
      args.last[pixel + i] = state.last[r][i];
      for (int64_t k = 0; k < channels; ++k)
        args.out[(pixel + i) * channels + k] = colour[k * kLanes + i];
    }
  }
}

template <class T>
auto composite_tile_for(int64_t channels) {
  switch (channels) {
    case 1:
      return composite_tile<T, 1>;
    case 2:
      return composite_tile<T, 2>;
    case 3:
      return composite_tile<T, 3>;
    case 4:
      return composite_tile<T, 4>;
    default:
      return composite_tile<T, 0>;
  }
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
  const auto run = composite_tile_for<T>(args.channels);
  for_each_tile_in_parallel(args.tile_offsets, 0, tile_count(args), context,
                            [&](int64_t tile, int worker) {
                              TileState<T> state;
                              state.colour = colours + worker * colour_size;
                              run(args, tile, state);
                            });
}

}  // namespace pyext::PYEXT_ISA
