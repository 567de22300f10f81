// Many LoRAs in one batch: rows in the order of their adapters, a tile of one adapter's at a time.
#pragma once

#include <cstring>

#include "lowrank/cpu/mixture.h"
#include "lowrank/cpu/spread.h"

namespace pyext::PYEXT_ISA {

constexpr int kRowsAhead = 8;  // rows are fetched while those before them are computed

// Rows by adapter, those of none left out.
struct RowsByAdapter {
  struct Tile {
    int64_t adapter, first;
    int count;
  };
  int64_t *order, *first;  // rows; adapter e's are from first[e] to first[e + 1]
  Tile* tiles;
  int64_t tile_count = 0;

  RowsByAdapter(const Routing& routing, const Context& context) {
    const int64_t count = routing.adapters;
    order = scratch_values<int64_t>(context, routing.rows + kRowsAhead);
    first = scratch_values<int64_t>(context, count + 2);
    tiles = scratch_values<Tile>(context, count + routing.rows / kTileRows);
    memset(first, 0, size_t(count + 2) * sizeof *first);
    // Counted two places late: what is then one place late moves to its end as rows are placed.
    for (int64_t n = 0; n < routing.rows; ++n)
      if (routing.has(n)) ++first[routing.adapter[n] + 2];
    for (int64_t e = 0; e < count; ++e) first[e + 2] += first[e + 1];
    for (int64_t n = 0; n < routing.rows; ++n)
      if (routing.has(n)) order[first[routing.adapter[n] + 1]++] = n;
    // Behind the last row it is repeated, for those that look ahead.
    for (int64_t i = first[count], k = 0; k < kRowsAhead; ++k) order[i + k] = i ? order[i - 1] : 0;
    for (int64_t e = 0; e < count; ++e)
      for (int64_t i = first[e]; i < first[e + 1]; i += kTileRows) {
        const int64_t rest = first[e + 1] - i;
        tiles[tile_count++] = {e, i, int(rest < kTileRows ? rest : kTileRows)};
      }
  }
};

// Rows of an array by their numbers, and those that follow them.
template <class S>
struct GatheredRows {
  S* at[kTileRows + kRowsAhead];
  GatheredRows(S* values, int64_t stride, const int64_t* rows, int count) {
    for (int i = 0; i < count + kRowsAhead; ++i) at[i] = values + rows[i] * stride;
  }
  S* const* next() const { return at + kRowsAhead; }
};

// The rows of one adapter's factor.
template <class T>
struct RankRows {
  T* at[kMaxRank];
  RankRows(T* factor, int64_t rank, int64_t width) {
    for (int64_t j = 0; j < rank; ++j) at[j] = factor + j * width;
  }
};

// Calls body(index, worker) for every task: by this thread alone where all have so little to do
// that waking the others takes longer.
template <class Body>
void share_tasks(const Routing& routing, int64_t width, int64_t tasks, Body& body) {
  if (routing.rows * routing.rank * width >= int64_t(1) << 20) return parallel_tasks(tasks, body);
  for (int64_t i = 0; i < tasks; ++i) body(i, 0);
}

template <class S>
void lora_shrink(const LoraShrinkArgs<S>& args, const Context& context) {
  using T = Wide<S>;
  const Routing& routing = args.routing;
  const RowsByAdapter rows(routing, context);
  memset(args.z, 0, size_t(routing.rows * routing.rank) * sizeof(T));
  auto tile = [&](int64_t index, int) {
    const RowsByAdapter::Tile& t = rows.tiles[index];
    const int64_t* own = rows.order + t.first;
    const GatheredRows<const S> x(args.x, args.stride, own, t.count);
    const int64_t rank = routing.rank_of(t.adapter);
    T products[kTileRows][kMaxRank];
    dots(t.count, x.at, args.W + routing.first_of(t.adapter) * args.width, rank, args.width,
         products[0], kMaxRank, x.next());
    const T scale = args.scale ? args.scale[t.adapter] : T(1);
    for (int i = 0; i < t.count; ++i)
      for (int64_t j = 0; j < rank; ++j) args.z[own[i] * routing.rank + j] = scale * products[i][j];
  };
  share_tasks(routing, args.width, rows.tile_count, tile);
}

// Rank values of rows of one adapter, times its scale: out[i * row_step + j * rank_step].
template <class T>
void scale_rows(const Routing& routing, int64_t adapter, const T* scale, const T* z,
                const int64_t* rows, int count, T* out, int64_t row_step, int64_t rank_step) {
  const int64_t rank = routing.rank_of(adapter);
  const T factor = scale ? scale[adapter] : T(1);
  for (int i = 0; i < count; ++i)
    for (int64_t j = 0; j < rank; ++j)
      out[i * row_step + j * rank_step] = factor * z[rows[i] * routing.rank + j];
}

// The factors that threads have packed, one each: worth it for many rows, and for one that leaves
// room in the second-level cache.
template <class T>
class PackedFactors {
 public:
  PackedFactors(const Routing& routing, int64_t width, const Context& context)
      : size_(routing.rank * blocks_of(width) * kLanes) {
    if (size_ > kMost) return;
    values_ = scratch_values<T>(context, thread_count() * size_);
    adapter_ = scratch_values<int64_t>(context, thread_count());
    for (int i = 0; i < thread_count(); ++i) adapter_[i] = -1;
  }
  // Null where W is better read as it is.
  const T* of(int worker, const RowsByAdapter::Tile& tile, const T* W, int64_t rank,
              int64_t width) const {
    if (size_ > kMost || tile.count < kTileRows / 2) return nullptr;
    T* values = values_ + worker * size_;
    if (adapter_[worker] != tile.adapter) pack_factor(W, rank, width, values);
    adapter_[worker] = tile.adapter;
    return values;
  }

 private:
  static constexpr int64_t kMost = (int64_t(1) << 18) / int64_t(sizeof(T));
  int64_t size_;
  T* values_;
  int64_t* adapter_;
};

template <class S>
void lora_expand(const LoraExpandArgs<S>& args, const Context& context) {
  using T = Wide<S>;
  const Routing& routing = args.routing;
  const RowsByAdapter rows(routing, context);
  const PackedFactors<T> packed(routing, args.width, context);
  T* scaled = scratch_values<T>(context, thread_count() * kTileRows * routing.rank);
  auto tile = [&](int64_t index, int worker) {
    const RowsByAdapter::Tile& t = rows.tiles[index];
    const int64_t* own = rows.order + t.first;
    const int64_t rank = routing.rank_of(t.adapter);
    T* z = scaled + worker * kTileRows * routing.rank;
    scale_rows(routing, t.adapter, args.scale, args.z, own, t.count, z, 1, kTileRows);
    const GatheredRows<S> y(args.y, args.stride, own, t.count);
    const T* W = args.W + routing.first_of(t.adapter) * args.width;
    const T* P = packed.of(worker, t, W, rank, args.width);
    spread<S>({z, rank, P ? P : W, args.width, P != nullptr, args.add}, t.count, y.at, y.next());
  };
  share_tasks(routing, args.width, rows.tile_count, tile);
  if (args.add) return;
  for (int64_t n = 0; n < routing.rows; ++n)
    if (!routing.has(n)) memset(args.y + n * args.stride, 0, size_t(args.width) * sizeof(S));
}

constexpr int64_t kOuterColumns = 256;  // of a task

template <class S>
void lora_outer(const LoraOuterArgs<S>& args, const Context& context) {
  using T = Wide<S>;
  const Routing& routing = args.routing;
  const int64_t parts = (args.width + kOuterColumns - 1) / kOuterColumns;
  const RowsByAdapter rows(routing, context);
  T* values = scratch_values<T>(context, thread_count() * kTileRows * routing.rank);
  auto part = [&](int64_t index, int worker) {
    const int64_t e = index / parts, at = index % parts * kOuterColumns;
    const int64_t width = args.width - at < kOuterColumns ? args.width - at : kOuterColumns;
    const int64_t rank = routing.rank_of(e);
    const RankRows<T> out(args.G + routing.first_of(e) * args.width + at, rank, args.width);
    for (int64_t j = 0; j < rank; ++j) memset(out.at[j], 0, size_t(width) * sizeof(T));
    T* z = values + worker * kTileRows * routing.rank;
    for (int64_t i = rows.first[e]; i < rows.first[e + 1]; i += kTileRows) {
      const int64_t rest = rows.first[e + 1] - i;
      const int count = int(rest < kTileRows ? rest : kTileRows);
      const GatheredRows<const S> x(args.x + at, args.stride, rows.order + i, count);
      scale_rows(routing, e, args.scale, args.z, rows.order + i, count, z, rank, 1);
      add_products<T>(int(rank), width, out.at, out.at, {z, 1, rank}, count, x.at);
    }
  };
  share_tasks(routing, args.width, routing.adapters * parts, part);
}

}  // namespace pyext::PYEXT_ISA
