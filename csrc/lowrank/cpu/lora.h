// Many LoRAs in one batch: rows in the order of their adapters, a tile of one adapter's at a time.
#pragma once

#include <cstring>

#include "lowrank/cpu/dots.h"
#include "lowrank/cpu/mixture.h"

namespace pyext::PYEXT_ISA {

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
    order = scratch_values<int64_t>(context, routing.rows);
    first = scratch_values<int64_t>(context, count + 2);
    tiles = scratch_values<Tile>(context, count + routing.rows / kTileRows);
    memset(first, 0, size_t(count + 2) * sizeof *first);
    // Counted two places late: what is then one place late moves to its end as rows are placed.
    for (int64_t n = 0; n < routing.rows; ++n)
      if (routing.has(n)) ++first[routing.adapter[n] + 2];
    for (int64_t e = 0; e < count; ++e) first[e + 2] += first[e + 1];
    for (int64_t n = 0; n < routing.rows; ++n)
      if (routing.has(n)) order[first[routing.adapter[n] + 1]++] = n;
    for (int64_t e = 0; e < count; ++e)
      for (int64_t i = first[e]; i < first[e + 1]; i += kTileRows) {
        const int64_t rest = first[e + 1] - i;
        tiles[tile_count++] = {e, i, int(rest < kTileRows ? rest : kTileRows)};
      }
  }
};

// Rows of an array by their numbers.
template <class S>
struct GatheredRows {
  S* at[kTileRows];
  GatheredRows(S* values, int64_t stride, const int64_t* rows, int count) {
    for (int i = 0; i < count; ++i) at[i] = values + rows[i] * stride;
  }
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
  const int64_t rank = args.routing.rank;
  const RowsByAdapter rows(args.routing, context);
  memset(args.z, 0, size_t(args.routing.rows * rank) * sizeof(T));
  auto tile = [&](int64_t index, int) {
    const RowsByAdapter::Tile& t = rows.tiles[index];
    const int64_t* own = rows.order + t.first;
    const GatheredRows<const S> x(args.x, args.stride, own, t.count);
    T products[kTileRows][kMaxRank];
    dots(t.count, x.at, args.W + t.adapter * rank * args.width, rank, args.width, products[0],
         kMaxRank);
    const T scale = args.scale ? args.scale[t.adapter] : T(1);
    for (int i = 0; i < t.count; ++i)
      for (int64_t j = 0; j < rank; ++j) args.z[own[i] * rank + j] = scale * products[i][j];
  };
  share_tasks(args.routing, args.width, rows.tile_count, tile);
}

template <class S>
void lora_expand(const LoraExpandArgs<S>& args, const Context& context) {
  using T = Wide<S>;
  const int64_t rank = args.routing.rank;
  const RowsByAdapter rows(args.routing, context);
  T* scaled = scratch_values<T>(context, thread_count() * kTileRows * rank);
  auto tile = [&](int64_t index, int worker) {
    const RowsByAdapter::Tile& t = rows.tiles[index];
    const int64_t* own = rows.order + t.first;
    T* z = scaled + worker * kTileRows * rank;
    const T scale = args.scale ? args.scale[t.adapter] : T(1);
    for (int i = 0; i < t.count; ++i)
      for (int64_t j = 0; j < rank; ++j) z[i * rank + j] = scale * args.z[own[i] * rank + j];
    const GatheredRows<S> y(args.y, args.stride, own, t.count);
    const RankRows<const T> factor(args.W + t.adapter * rank * args.width, rank, args.width);
    add_products<S>(t.count, args.width, y.at, args.add ? y.at : nullptr, {z, rank, 1}, rank,
                    factor.at);
  };
  share_tasks(args.routing, args.width, rows.tile_count, tile);
  if (args.add) return;
  for (int64_t n = 0; n < args.routing.rows; ++n)
    if (!args.routing.has(n)) memset(args.y + n * args.stride, 0, size_t(args.width) * sizeof(S));
}

constexpr int64_t kOuterColumns = 256;  // of a task

template <class S>
void lora_outer(const LoraOuterArgs<S>& args, const Context& context) {
  using T = Wide<S>;
  const int64_t rank = args.routing.rank, parts = (args.width + kOuterColumns - 1) / kOuterColumns;
  const RowsByAdapter rows(args.routing, context);
  T* values = scratch_values<T>(context, thread_count() * kTileRows * rank);
  auto part = [&](int64_t index, int worker) {
    const int64_t e = index / parts, at = index % parts * kOuterColumns;
    const int64_t width = args.width - at < kOuterColumns ? args.width - at : kOuterColumns;
    const RankRows<T> out(args.G + e * rank * args.width + at, rank, args.width);
    for (int64_t j = 0; j < rank; ++j) memset(out.at[j], 0, size_t(width) * sizeof(T));
    T* z = values + worker * kTileRows * rank;
    for (int64_t i = rows.first[e]; i < rows.first[e + 1]; i += kTileRows) {
      const int64_t rest = rows.first[e + 1] - i;
      const int count = int(rest < kTileRows ? rest : kTileRows);
      const GatheredRows<const S> x(args.x + at, args.stride, rows.order + i, count);
      for (int k = 0; k < count; ++k)
        memcpy(z + k * rank, args.z + rows.order[i + k] * rank, size_t(rank) * sizeof(T));
      add_products<T>(int(rank), width, out.at, out.at, {z, 1, rank}, count, x.at);
    }
  };
  share_tasks(args.routing, args.width, args.routing.adapters * parts, part);
}

}  // namespace pyext::PYEXT_ISA
