// The sparse matrix between Gaussians and the cells of a grid laid over the images.
//
// Tiles are marched once. What an entry (tile, Gaussian) gives to the cells it reaches is written
// as records, wherever its worker has room; how many there are is known only then. Each Gaussian
// then merges the records of its entries, in the order of the tiles, and the rows of the matrix are
// copied from that. Where a record lies depends on the worker, what it holds does not.
#pragma once

#include "core/simd_shuffle.h"
#include "splat/cpu/composite.h"
#include "splat/cpu/weights.h"

namespace pyext::PYEXT_ISA {

template <class T>
struct CellRecord {
  uint16_t x, y;  // in the grid
  T value;
};

// Consecutive records by ascending cell, row-major.
template <class T>
struct CellRecords {
  CellRecord<T>* first;
  int64_t count;
};

// What a Gaussian gets from one tile.
template <class T>
struct alignas(32) CellEntry {  // within one cache line
  CellRecords<T> records;
  int32_t hits;
  T mass;
};

// Memory of one worker, taken in chunks of growing size: what is kept in it stays where it is.
template <class T>
struct alignas(64) CellRoom {
  static constexpr int64_t kLeast = int64_t(1) << 12, kMost = int64_t(1) << 20;  // records
  CellRecord<T>* next = nullptr;
  int64_t left = 0, chunk = kLeast;

  CellRecord<T>* at_least(int64_t count, const Context& context) {
    if (left < count) {
      left = count < chunk ? chunk : count;
      chunk = 2 * chunk < kMost ? 2 * chunk : kMost;
      next = static_cast<CellRecord<T>*>(
          context.scratch(context.owner, left * int64_t(sizeof(CellRecord<T>))));
    }
    return next;
  }
  CellRecords<T> keep(const CellRecord<T>* end) {
    const CellRecords<T> kept{next, end - next};
    left -= kept.count;
    next += kept.count;
    return kept;
  }
};

// Records on their way to memory: sums over pixels are taken several at a time.
template <class T>
struct CellWriter {
  static constexpr int kPending = 4;
  CellRecord<T>* to;
  int pending = 0;
  CellRecord<T> records[kPending];
  Lanes<T> products[kPending];

  explicit CellWriter(CellRecord<T>* to_) : to(to_) {
    for (Lanes<T>& p : products) p = Lanes<T>(T(0));
  }
  PYEXT_INLINE void add(int32_t x, int32_t y, Lanes<T> product) {
    records[pending] = {uint16_t(x), uint16_t(y), T(0)};
    products[pending] = product;
    if (++pending == kPending) flush();
  }
  PYEXT_INLINE void flush() {
    T values[kPending];
    sum_each<kPending>(products, values);
    for (int i = 0; i < pending; ++i) {  // what is zero is written over
      *to = {records[i].x, records[i].y, values[i]};
      to += values[i] > T(0);
    }
    pending = 0;
  }
};

// The cells that a tile's pixels map to: indices into `cells` and `weights` of the axis maps.
struct OwnCells {
  int32_t left, right, top, bottom;
  int64_t count() const { return int64_t(right - left) * (bottom - top); }
};

template <class T>
OwnCells own_cells(const CellsArgs<T>& args, const TileAt& at) {
  const int32_t *x = args.across.starts + at.x / kTile, *y = args.down.starts + at.y / kTile;
  return {x[0], x[1], y[0], y[1]};
}

// Writes what one Gaussian gives to the tile's own cells, and returns the end. Rows of cells are
// taken in pairs: that is what a tile has where cells are not smaller than tiles.
template <class T>
CellRecord<T>* write_cells(const CellsArgs<T>& args, const OwnCells& own, uint32_t rows,
                           const T* weights, CellRecord<T>* to) {
  using V = Lanes<T>;
  const V zero(T(0)), one(T(1));
  CellWriter<T> writer(to);
  for (int32_t y = own.top; y < own.bottom; y += 2) {
    const int32_t pair[2] = {y, y + 1 < own.bottom ? y + 1 : y};
    const T* down[2];
    for (int i = 0; i < 2; ++i) down[i] = args.down.weights + int64_t(pair[i]) * kTile;
    const uint32_t used = ((V::load(down[0]) > zero) | (V::load(down[1]) > zero)).bits();
    V sum[2] = {zero, zero};
    for (uint32_t bits = rows & used; bits; bits &= bits - 1) {
      const int r = __builtin_ctz(bits);
      V weight = V::load(weights + r * kLanes);
      if (args.count) weight = select(weight > zero, one, zero);
      for (int i = 0; i < 2; ++i) sum[i] = fma(V(down[i][r]), weight, sum[i]);
    }
    for (int i = 0; i <= pair[1] - y; ++i) {
      if (!(sum[i] > zero).any()) continue;
      for (int32_t x = own.left; x < own.right; ++x)
        writer.add(args.across.cells[x], args.down.cells[pair[i]],
                   sum[i] * V::load(args.across.weights + int64_t(x) * kTile));
    }
  }
  if (writer.pending) writer.flush();
  return writer.to;
}

// The march, the merge and the copy over one set of arrays.
template <class T>
struct CellMatrix {
  const CellsArgs<T>& args;
  const March<T> f;
  const Context& context;
  int64_t ranks, cells;
  CellRoom<T>* rooms;      // of every worker
  CellEntry<T>* entries;   // [M]
  CellRecords<T>* merged;  // [I N], by id

  CellMatrix(const CellsArgs<T>& args_, const Context& context_)
      : args(args_), f(args_.forward, context_), context(context_) {
    ranks = f.images * f.gaussians;
    cells = int64_t(args.cell_width) * args.cell_height;
    rooms = scratch<CellRoom<T>>(thread_count());
    for (int worker = 0; worker < thread_count(); ++worker) rooms[worker] = {};
    entries = scratch<CellEntry<T>>(f.entries);
    merged = scratch<CellRecords<T>>(ranks);
  }

  template <class U>
  U* scratch(int64_t count) const {
    return static_cast<U*>(context.scratch(context.owner, count * int64_t(sizeof(U))));
  }

  void march_tile(int64_t tile, T* weights, CellRoom<T>& room) const {
    const int64_t begin = f.tile_offsets[tile], end = f.tile_offsets[tile + 1];
    for (int64_t entry = begin; entry < end; ++entry) entries[entry] = {};
    const TileAt at = tile_at(tile, f.width, f.height);
    const OwnCells own = own_cells(args, at);
    Row<T> rows[kTile];
    start_rows(f, at, rows);
    keep_pixels(f, at, args.mask, uint32_t(args.across.used[at.x / kTile]),
                uint32_t(args.down.used[at.y / kTile]), rows);
    for_each_contributor(f, tile, at, rows, weights,
                         [&](int64_t index, int32_t, uint32_t hit_rows, const T* w) {
                           CellEntry<T>& entry = entries[index];
                           if (args.mass) entry.mass = mass_and_hits(hit_rows, w, entry.hits);
                           CellRecord<T>* to = room.at_least(own.count(), context);
                           entry.records = room.keep(write_cells(args, own, hit_rows, w, to));
                         });
  }

  void march() const {
    T* weights = scratch<T>(thread_count() * kWeightBlock);
    for_each_tile_in_parallel(f.tile_offsets, 0, tile_count(f), context,
                              [&](int64_t tile, int worker) {
                                march_tile(tile, weights + worker * kWeightBlock, rooms[worker]);
                              });
  }

  // Entries of a Gaussian are far apart, those that come next included.
  PYEXT_INLINE void prefetch(const int32_t* entry_of) const {
    constexpr int64_t kAhead = 12;
    const int64_t left = args.entries_of + f.entries - entry_of;
    if (left > 2 * kAhead) __builtin_prefetch(entries + entry_of[2 * kAhead]);
    if (left > kAhead) __builtin_prefetch(entries[entry_of[kAhead]].records.first);
  }

  // Adds up a Gaussian's records of the same cell, in a grid of zeros that is left as it was found.
  CellRecords<T> merge(int64_t rank, T* grid, CellRoom<T>& room) const {
    const int32_t *begin = args.entries_of + args.starts[rank],
                  *end = args.entries_of + args.starts[rank + 1];
    for (const int32_t* e = begin; e < end; ++e) prefetch(e);
    if (end - begin == 1) return entries[*begin].records;
    int32_t left = args.cell_width, right = -1, top = args.cell_height, bottom = -1;
    for (const int32_t* e = begin; e < end; ++e) {
      const CellRecords<T>& own = entries[*e].records;
      for (int64_t i = 0; i < own.count; ++i) {
        const int32_t x = own.first[i].x, y = own.first[i].y;
        left = x < left ? x : left;
        right = x > right ? x : right;
        top = y < top ? y : top;
        bottom = y > bottom ? y : bottom;
        grid[y * args.cell_width + x] += own.first[i].value;
      }
    }
    if (right < 0) return {};
    CellRecord<T>* to = room.at_least(int64_t(right - left + 1) * (bottom - top + 1), context);
    for (int32_t y = top; y <= bottom; ++y)
      for (int32_t x = left; x <= right; ++x) {
        T& value = grid[y * args.cell_width + x];
        if (value == T(0)) continue;
        *to++ = {uint16_t(x), uint16_t(y), value};
        value = T(0);
      }
    return room.keep(to);
  }

  void add_up_mass(int64_t rank) const {
    T mass = T(0);
    int32_t hits = 0;
    for (int64_t e = args.starts[rank]; e < args.starts[rank + 1]; ++e) {
      const CellEntry<T>& entry = entries[args.entries_of[e]];
      mass += entry.mass;
      hits += entry.hits;
    }
    args.mass[args.order[rank]] = mass;
    args.hits[args.order[rank]] = hits;
  }

  void merge_all() const {
    constexpr int64_t kRanks = 512;
    T* grids = scratch<T>(thread_count() * cells);
    memset(grids, 0, size_t(thread_count() * cells) * sizeof(T));
    auto task = [&](int64_t index, int worker) {
      const int64_t last = (index + 1) * kRanks < ranks ? (index + 1) * kRanks : ranks;
      for (int64_t rank = index * kRanks; rank < last; ++rank) {
        merged[args.order[rank]] = merge(rank, grids + worker * cells, rooms[worker]);
        if (args.mass) add_up_mass(rank);
      }
    };
    parallel_tasks((ranks + kRanks - 1) / kRanks, task);
  }

  int64_t cell_of(const CellRecord<T>& record) const {
    return int64_t(record.y) * args.cell_width + record.x;
  }

  void copy_by_gaussian() const {
    const int64_t N = f.gaussians;
    args.crow[0] = 0;
    for (int64_t n = 0; n < N; ++n) {
      args.crow[n + 1] = args.crow[n];
      for (int64_t id = n; id < ranks; id += N) args.crow[n + 1] += merged[id].count;
    }
    int64_t* col;
    T* val;
    args.allocate(args.owner, args.crow[N], &col, &val);
    constexpr int64_t kRows = 512;
    auto task = [&](int64_t index, int) {
      const int64_t last = (index + 1) * kRows < N ? (index + 1) * kRows : N;
      for (int64_t n = index * kRows, at = args.crow[n]; n < last; ++n)
        for (int64_t id = n; id < ranks; id += N)
          for (int64_t k = 0; k < merged[id].count; ++k, ++at) {
            col[at] = id / N * cells + cell_of(merged[id].first[k]);
            val[at] = merged[id].first[k].value;
          }
    };
    parallel_tasks((N + kRows - 1) / kRows, task);
  }

  // The transpose: a counting sort by cell, image by image; Gaussians come in ascending order.
  void copy_by_cell() const {
    const int64_t N = f.gaussians, rows = f.images * cells;
    auto for_each = [&](int64_t image, auto visit) {
      for (int64_t n = 0; n < N; ++n) {
        const CellRecords<T>& own = merged[image * N + n];
        for (int64_t k = 0; k < own.count; ++k)
          visit(n, image * cells + cell_of(own.first[k]), own.first[k].value);
      }
    };
    memset(args.crow, 0, size_t(rows + 1) * sizeof(int64_t));
    auto count = [&](int64_t image, int) {
      for_each(image, [&](int64_t, int64_t row, T) { ++args.crow[row + 1]; });
    };
    parallel_tasks(f.images, count);
    for (int64_t row = 0; row < rows; ++row) args.crow[row + 1] += args.crow[row];
    int64_t* col;
    T* val;
    args.allocate(args.owner, args.crow[rows], &col, &val);
    auto* next = scratch<int64_t>(rows);
    memcpy(next, args.crow, size_t(rows) * sizeof(int64_t));
    auto fill = [&](int64_t image, int) {
      for_each(image, [&](int64_t n, int64_t row, T value) {
        col[next[row]] = n;
        val[next[row]++] = value;
      });
    };
    parallel_tasks(f.images, fill);
  }
};

template <class T>
void cells(const CellsArgs<T>& args, const Context& context) {
  const CellMatrix<T> matrix(args, context);
  matrix.march();
  matrix.merge_all();
  if (args.by_cell)
    matrix.copy_by_cell();
  else
    matrix.copy_by_gaussian();
}

}  // namespace pyext::PYEXT_ISA
