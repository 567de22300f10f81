// Backward of the compositor, without atomics and without divisions.
//
// A tile is marched front to back once more, keeping (alpha, T) of every row a Gaussian touched;
// then each Gaussian, back to front, visits its rows with its sums in registers. With q = f . g_C
// and U the value a pixel sees behind the Gaussian,
//   dL/dalpha = T (q - U),   U <- U + alpha (q - U),   U at the back = dL/dT_final.
// The sums over a tile are moments of h = alpha dL/dalpha about the centre; they go to the slot of
// the tile and the Gaussian.
#pragma once

#include <cstring>

#include "splat/cpu/composite.h"
#include "splat/cpu/slots.h"

namespace pyext::PYEXT_ISA {

constexpr int kMoments = 6;    // sums of h, h dx, h dy, h dx^2, h dx dy, h dy^2
constexpr int kAbsolutes = 2;  // sums of |h (a dx + b dy)|, |h (b dx + c dy)|, if asked for
// A segment of a list is as many blocks as have room for their records: at least eight.
constexpr int kSegmentBlocks = 32;
constexpr int kRecord = 2 * kLanes;
constexpr int kBlockRecords = kBlock * kTile;       // at most
constexpr int kSegmentRecords = 8 * kBlockRecords;  // 1 MB in float32: the L2 of a core

// Where a segment begins, and its rows there.
template <class T>
struct Checkpoint {
  int64_t first;
  Row<T> rows[kTile];
};

// What one worker needs for one tile.
template <class T>
struct BackwardState {
  Block<T> blocks[kSegmentBlocks];
  uint16_t hit_rows[kSegmentBlocks * kBlock];  // rows in which the Gaussian contributes
  Row<T> rows[kTile];
  T* records;  // one (alpha, T) [2, 16 lanes] per bit of hit_rows: block by block, row by row
  T* ends[kSegmentBlocks][kTile];  // where the records of a block's row end
  T* g_out;                        // [16 rows, D, 16 lanes]
  T* behind;                       // [16 rows, 16 lanes]: U
  Checkpoint<T>* checkpoints;      // [segments]
  bool live;                       // any pixel left
};

// Marches one segment from state.rows, keeping records. Returns where it ends, at most at `last`.
template <class T>
int64_t march_segment(const March<T>& args, const TileAt& at, int64_t first, int64_t last,
                      BackwardState<T>& state) {
  const Lanes<T> alpha_max(args.alpha_max), zero(T(0));
  T* record = state.records;
  const T* const room = record + (kSegmentRecords - kBlockRecords) * kRecord;
  memset(state.hit_rows, 0, sizeof state.hit_rows);
  state.live = true;
  for (int b = 0; b < kSegmentBlocks && record <= room && first < last && state.live; ++b) {
    Block<T>& block = state.blocks[b];
    load_block(args, at, first, last, block);
    first += kBlock;
    bool live = false;
    for (int r = 0; r < kTile; ++r) {
      Row<T> row = state.rows[r];
      if (!row.live) continue;
      for (uint64_t bits = touched(block, r); bits && row.live; bits &= bits - 1) {
        const int j = __builtin_ctzll(bits);
        const Step<T> s = step(block, j, alpha_max, row);
        const bool hit = s.contributes.any();
        select(s.contributes, s.alpha, zero).store(record);
        s.before.store(record + kLanes);
        record += hit ? kRecord : 0;
        state.hit_rows[b * kBlock + j] |= uint16_t(uint16_t(hit) << r);
      }
      state.ends[b][r] = record;
      state.rows[r] = row;
      live |= row.live;
    }
    state.live = live;
  }
  return first < last ? first : last;
}

// Sums of one Gaussian over the tile, in registers where D is known when compiled.
template <class T, int D>
struct FeatureSums {
  Lanes<T> sum[D], feature[D];
  PYEXT_INLINE FeatureSums(const T* features, int64_t, uint32_t, T* const*, const T*, T*) {
    for (int k = 0; k < D; ++k) {
      sum[k] = Lanes<T>(T(0));
      feature[k] = Lanes<T>(features[k]);
    }
  }
  PYEXT_INLINE Lanes<T> dot(int, const T* g_out) const {
    Lanes<T> q = feature[0] * Lanes<T>::load(g_out);
    for (int k = 1; k < D; ++k) q = fma(feature[k], Lanes<T>::load(g_out + k * kLanes), q);
    return q;
  }
  PYEXT_INLINE void add(Lanes<T> weight, const T* g_out) {
    for (int k = 0; k < D; ++k) sum[k] = fma(weight, Lanes<T>::load(g_out + k * kLanes), sum[k]);
  }
  // All sums of the slot in one go: the K of the geometry, then the features.
  template <int K>
  PYEXT_INLINE void finish(const Lanes<T>* geometry, T* slot) const {
    Lanes<T> all[K + D];
    for (int i = 0; i < K; ++i) all[i] = geometry[i];
    for (int k = 0; k < D; ++k) all[K + k] = sum[k];
    sum_each<K + D>(all, slot);
  }
};

// Any number of channels: a few at a time, over all rows at once, so that one read of the upstream
// gradient serves both products and the sums stay in registers.
template <class T>
struct FeatureSums<T, 0> {
  Lanes<T> q[kTile], weights[kTile];
  const T* upstream[kTile];
  int count = 0;

  PYEXT_INLINE FeatureSums(const T* features, int64_t channels, uint32_t rows, T* const* ends,
                           const T* g_out, T* sums) {
    for (; rows; rows &= rows - 1) {
      const int r = __builtin_ctz(rows);
      const T* record = ends[r] - kRecord;
      weights[count] = Lanes<T>::load(record) * Lanes<T>::load(record + kLanes);
      q[count] = Lanes<T>(T(0));
      upstream[count++] = g_out + r * channels * kLanes;
    }
    int64_t k = 0;
    for (; k + 8 <= channels; k += 8) multiply<8>(features, k, sums);
    for (; k + 4 <= channels; k += 4) multiply<4>(features, k, sums);
    for (; k < channels; ++k) multiply<1>(features, k, sums);
  }
  PYEXT_INLINE Lanes<T> dot(int i, const T*) const { return q[i]; }
  PYEXT_INLINE void add(Lanes<T>, const T*) {}
  template <int K>
  PYEXT_INLINE void finish(const Lanes<T>* geometry, T* slot) const {
    sum_each<K>(geometry, slot);
  }

 private:
  template <int Count>
  PYEXT_INLINE void multiply(const T* features, int64_t k, T* sums) {
    Lanes<T> feature[Count], sum[Count];
    for (int c = 0; c < Count; ++c) {
      feature[c] = Lanes<T>(features[k + c]);
      sum[c] = Lanes<T>(T(0));
    }
    for (int i = 0; i < count; ++i) {
      Lanes<T> chains[2] = {q[i], Lanes<T>(T(0))};  // two, to hide the latency of an addition
      for (int c = 0; c < Count; ++c) {
        const Lanes<T> g = Lanes<T>::load(upstream[i] + (k + c) * kLanes);
        chains[c & 1] = fma(feature[c], g, chains[c & 1]);
        sum[c] = fma(weights[i], g, sum[c]);
      }
      q[i] = chains[0] + chains[1];
    }
    sum_each<Count>(sum, sums + k);
  }
};

// One Gaussian of a marched block: back-propagates through its rows, whose records end at `ends`,
// and fills its slot. Gaussians come back to front: what it has read is no longer wanted.
template <class T, int D, bool kAbsolute>
PYEXT_INLINE void gaussian_backward(const CompositeArgs<T>& args, const Block<T>& block, int j,
                                    uint32_t rows, T** ends, BackwardState<T>& state, T* slot) {
  using V = Lanes<T>;
  const V alpha_max(args.alpha_max), zero(T(0));
  constexpr int kGeometry = kMoments + (kAbsolute ? kAbsolutes : 0);
  FeatureSums<T, D> features(args.features + block.id[j] * args.channels, args.channels, rows, ends,
                             state.g_out, slot + kGeometry);
  V h0 = zero, h1 = zero, h2 = zero;  // sums over rows of h, h dy, h dy^2, per column
  V absolute_x = zero, absolute_y = zero;
  const V dx = pixel_centres<T>() - V(block.u[j]);
  for (int i = 0; rows; rows &= rows - 1, ++i) {
    const int r = __builtin_ctz(rows);
    const T* record = ends[r] -= kRecord;
    const T* g_out = state.g_out + r * args.channels * kLanes;
    T* behind = state.behind + r * kLanes;
    const V alpha = V::load(record), U = V::load(behind);
    const V d = features.dot(i, g_out) - U;
    const V weight = alpha * V::load(record + kLanes);
    features.add(weight, g_out);
    fma(alpha, d, U).store(behind);
    // At the clamp alpha no longer moves with the opacity or the shape.
    const V h = select(alpha < alpha_max, weight * d, zero);
    const V dy(T(r) + T(0.5) - block.v[j]);
    h0 = h0 + h;
    const V hy = h * dy;
    h1 = h1 + hy;
    h2 = fma(hy, dy, h2);
    if constexpr (kAbsolute) {
      const T* conic = args.conics + 3 * int64_t(block.id[j]);
      const V b(conic[1]);
      const V gx = h * fma(V(conic[0]), dx, b * dy), gy = h * fma(V(conic[2]), dy, b * dx);
      absolute_x = absolute_x + vmax(gx, -gx);
      absolute_y = absolute_y + vmax(gy, -gy);
    }
  }
  const V hx = h0 * dx;
  if constexpr (kAbsolute) {
    const V geometry[] = {h0, hx, h1, hx * dx, h1 * dx, h2, absolute_x, absolute_y};
    features.template finish<kGeometry>(geometry, slot);
  } else {
    const V geometry[] = {h0, hx, h1, hx * dx, h1 * dx, h2};
    features.template finish<kGeometry>(geometry, slot);
  }
}

template <class T, int D>
void load_upstream(const CompositeBackwardArgs<T>& args, const TileAt& at,
                   BackwardState<T>& state) {
  const CompositeArgs<T>& f = args.forward;
  const int columns = f.width - at.x < kTile ? f.width - at.x : kTile;
  const int rows = f.height - at.y < kTile ? f.height - at.y : kTile;
  if (columns < kTile || rows < kTile) {
    memset(state.g_out, 0, size_t(kTile * f.channels * kLanes) * sizeof(T));
    memset(state.behind, 0, size_t(kTile * kLanes) * sizeof(T));
  }
  for (int r = 0; r < rows; ++r) {
    const int64_t pixel = (at.image * f.height + at.y + r) * f.width + at.x;
    memcpy(state.behind + r * kLanes, args.g_transmittance + pixel, size_t(columns) * sizeof(T));
    T* g_out = state.g_out + r * f.channels * kLanes;
    if constexpr (D > 0) {
      if (columns == kTile) {
        Lanes<T> g[D];
        deinterleave<D>(args.g_out + pixel * D, g);
        for (int k = 0; k < D; ++k) g[k].store(g_out + k * kLanes);
        continue;
      }
    }
    for (int64_t k = 0; k < f.channels; k += kLanes) {
      const int width = f.channels - k < kLanes ? int(f.channels - k) : kLanes;
      Lanes<T> g[kLanes];
      load_block(args.g_out + pixel * f.channels + k, f.channels, width, columns, g);
      for (int i = 0; i < width; ++i) g[i].store(g_out + (k + i) * kLanes);
    }
  }
}

// Sums of the geometry in a slot; those of the D features follow.
template <class T>
int64_t geometry_sums(const CompositeBackwardArgs<T>& args) {
  return kMoments + (args.g_absolute ? kAbsolutes : 0);
}

// slots [entries of the tile, geometry_sums + D] start out zero.
template <class T, int D, bool kAbsolute>
void composite_tile_backward(const CompositeBackwardArgs<T>& args, const March<T>& f, int64_t tile,
                             BackwardState<T>& state, T* slots) {
  const TileAt at = tile_at(tile, f.width, f.height);
  const int64_t begin = f.tile_offsets[tile], end = f.tile_offsets[tile + 1];
  const int64_t stride = geometry_sums(args) + f.channels;
  load_upstream<T, D>(args, at, state);
  start_rows(f, at, state.rows);

  int64_t segments = 0, next = begin;
  for (state.live = true; state.live && next < end; ++segments) {
    state.checkpoints[segments].first = next;
    memcpy(state.checkpoints[segments].rows, state.rows, sizeof state.rows);
    next = march_segment(f, at, next, end, state);
  }
  for (int64_t segment = segments - 1, last = next; segment >= 0; --segment) {
    const int64_t first = state.checkpoints[segment].first;
    if (segment < segments - 1) {  // its records were overwritten since
      memcpy(state.rows, state.checkpoints[segment].rows, sizeof state.rows);
      march_segment(f, at, first, last, state);
    }
    for (int64_t i = last - first - 1; i >= 0; --i) {
      const uint32_t rows = state.hit_rows[i];
      if (rows)
        gaussian_backward<T, D, kAbsolute>(f, state.blocks[i / kBlock], int(i % kBlock), rows,
                                           state.ends[i / kBlock], state,
                                           slots + (first - begin + i) * stride);
    }
    last = first;
  }
}

template <class T>
PYEXT_INLINE void prefetch_gradients(const CompositeBackwardArgs<T>& args, int64_t id) {
  __builtin_prefetch(args.forward.conics + 3 * id);
  __builtin_prefetch(args.forward.opacities + id);
  __builtin_prefetch(args.g_means2d + 2 * id, 1);
  __builtin_prefetch(args.g_conics + 3 * id, 1);
  __builtin_prefetch(args.g_opacities + id, 1);
  __builtin_prefetch(args.g_features + id * args.forward.channels, 1);
}

// Adds a Gaussian's sums over a band of tiles to its gradients.
template <class T>
PYEXT_INLINE void add_gradients(const CompositeBackwardArgs<T>& args, int64_t id, const T* m) {
  const CompositeArgs<T>& f = args.forward;
  const T a = f.conics[3 * id], b = f.conics[3 * id + 1], c = f.conics[3 * id + 2];
  // dL/dsigma = -h; offsets here run from the centre to the pixel.
  args.g_means2d[2 * id] += a * m[1] + b * m[2];
  args.g_means2d[2 * id + 1] += b * m[1] + c * m[2];
  args.g_conics[3 * id] -= T(0.5) * m[3];
  args.g_conics[3 * id + 1] -= m[4];
  args.g_conics[3 * id + 2] -= T(0.5) * m[5];
  args.g_opacities[id] += m[0] / f.opacities[id];
  if (args.g_absolute)
    for (int i = 0; i < kAbsolutes; ++i) args.g_absolute[2 * id + i] += m[kMoments + i];
  const T* features = m + geometry_sums(args);
  T* g_features = args.g_features + id * f.channels;
  for (int64_t k = 0; k < f.channels; ++k) g_features[k] += features[k];
}

template <class T>
void zero_gradients(const CompositeBackwardArgs<T>& args) {
  const int64_t count = args.forward.images * args.forward.gaussians;
  memset(args.g_means2d, 0, size_t(2 * count) * sizeof(T));
  memset(args.g_conics, 0, size_t(3 * count) * sizeof(T));
  memset(args.g_opacities, 0, size_t(count) * sizeof(T));
  if (args.g_absolute) memset(args.g_absolute, 0, size_t(2 * count) * sizeof(T));
  memset(args.g_features, 0, size_t(count * args.forward.channels) * sizeof(T));
}

// Scratch of all workers, carved from one allocation each.
template <class T>
struct BackwardScratch {
  int64_t channels, segments;
  T *records, *planes;
  Checkpoint<T>* checkpoints;

  BackwardScratch(const CompositeArgs<T>& args, int64_t longest_list, const Context& context) {
    const int64_t workers = thread_count();
    channels = args.channels;
    constexpr int64_t kShortest = kSegmentRecords / kBlockRecords * kBlock;
    segments = (longest_list + kShortest - 1) / kShortest;
    records =
        static_cast<T*>(context.scratch(context.owner, workers * kRecords * int64_t(sizeof(T))));
    planes =
        static_cast<T*>(context.scratch(context.owner, workers * plane() * int64_t(sizeof(T))));
    checkpoints = static_cast<Checkpoint<T>*>(
        context.scratch(context.owner, workers * segments * int64_t(sizeof(Checkpoint<T>)) + 64));
  }
  void give(int worker, BackwardState<T>& state) const {
    state.records = records + worker * kRecords;
    state.g_out = planes + worker * plane();
    state.behind = state.g_out + kTile * channels * kLanes;
    state.checkpoints = checkpoints + worker * segments;
  }

 private:
  // One more: a record is written before it is known to count.
  static constexpr int64_t kRecords = (int64_t(kSegmentRecords) + 1) * kRecord;
  int64_t plane() const { return (kTile * channels + kTile) * kLanes; }
};

template <class T>
void composite_backward(const CompositeBackwardArgs<T>& args, const Context& context) {
  const March<T> f(args.forward, context);
  zero_gradients(args);
  const SlotLists lists{f.tile_offsets,         tile_count(f), args.order,
                        f.images * f.gaussians, args.starts,   args.entries_of};
  const BackwardScratch<T> scratch(f, longest_list(lists), context);
  const auto run = with_channels(f.channels, [&](auto d) {
    constexpr int D = decltype(d)::value;
    return args.g_absolute ? &composite_tile_backward<T, D, true>
                           : &composite_tile_backward<T, D, false>;
  });
  sum_slots<T>(
      lists, geometry_sums(args) + f.channels, context,
      [&](int64_t tile, int worker, T* slots) {
        BackwardState<T> state;
        scratch.give(worker, state);
        run(args, f, tile, state, slots);
      },
      [&](int64_t id) { prefetch_gradients(args, id); },
      [&](int64_t id, const T* sums) { add_gradients(args, id, sums); });
}

}  // namespace pyext::PYEXT_ISA
