// The sparse matrix between Gaussians and the cells of a grid laid over the images.
//
// Tiles are marched twice: the first time each (tile, Gaussian) entry counts the cells it reaches,
// the second time it writes them as records, Gaussian after Gaussian. Then each Gaussian merges
// what its tiles have in common, in the order of the tiles, and the rows of the matrix are copied.
#pragma once

#include "splat/cpu/composite.h"
#include "splat/cpu/weights.h"

namespace pyext::PYEXT_ISA {

template <class T>
struct CellRecord {
  int32_t cell;  // row-major in the grid
  T value;
};

// Calls visit(cell, value) for every cell that one Gaussian reaches from one tile, ascending.
// `sums` [cells of the tile down, 16 lanes] is scratch.
template <class T, class Visit>
void for_each_cell(const CellsArgs<T>& args, const TileAt& at, uint32_t rows, const T* weights,
                   T* sums, Visit visit) {
  using V = Lanes<T>;
  const int32_t tile_x = at.x / kTile, tile_y = at.y / kTile;
  const int32_t top = args.down.starts[tile_y], bottom = args.down.starts[tile_y + 1];
  const int32_t left = args.across.starts[tile_x], right = args.across.starts[tile_x + 1];
  const V zero(T(0)), one(T(1));
  for (int32_t y = top; y < bottom; ++y) {
    const T* down = args.down.weights + int64_t(y) * kTile;
    V sum = zero;
    for (uint32_t bits = rows; bits; bits &= bits - 1) {
      const int r = __builtin_ctz(bits);
      if (down[r] == T(0)) continue;
      V weight = V::load(weights + r * kLanes);
      if (args.count) weight = select(weight > zero, one, zero);
      sum = fma(V(down[r]), weight, sum);
    }
    sum.store(sums + (y - top) * kLanes);
  }
  for (int32_t y = top; y < bottom; ++y) {
    const V sum = V::load(sums + (y - top) * kLanes);
    if (!(sum > zero).any()) continue;
    for (int32_t x = left; x < right; ++x) {
      const T value = (sum * V::load(args.across.weights + int64_t(x) * kTile)).sum();
      if (value > T(0)) visit(args.down.cells[y] * args.cell_width + args.across.cells[x], value);
    }
  }
}

// The two marches, the merge and the copy over one set of arrays.
template <class T>
struct CellMatrix {
  const CellsArgs<T>& args;
  const CompositeArgs<T>& f;
  const Context& context;
  int64_t ranks, cells, down_cells;
  T *weights, *sums;  // of every worker
  int64_t* place;     // [M]: records of the entry, then where they start
  int64_t* begin;     // [I N]: a Gaussian's first record, by id
  int64_t* size;      // [I N]: its number of records
  CellRecord<T>* records = nullptr;

  CellMatrix(const CellsArgs<T>& args_, const Context& context_)
      : args(args_), f(args_.forward), context(context_) {
    ranks = f.images * f.gaussians;
    cells = int64_t(args.cell_width) * args.cell_height;
    down_cells = 0;
    const int32_t tiles_y = (f.height + kTile - 1) / kTile;
    for (int32_t t = 0; t < tiles_y; ++t) {
      const int64_t reached = args.down.starts[t + 1] - args.down.starts[t];
      down_cells = reached > down_cells ? reached : down_cells;
    }
    weights = scratch<T>(thread_count() * kWeightBlock);
    sums = scratch<T>(thread_count() * down_cells * kLanes);
    place = scratch<int64_t>(f.entries);
    begin = scratch<int64_t>(ranks);
    size = scratch<int64_t>(ranks);
  }

  template <class U>
  U* scratch(int64_t count) const {
    return static_cast<U*>(context.scratch(context.owner, count * int64_t(sizeof(U))));
  }

  // Calls visit(entry, cell, value) for all non-zeros, tile by tile in parallel.
  template <class Visit>
  void march(Visit visit) const {
    for_each_tile_in_parallel(
        f.tile_offsets, 0, tile_count(f), context, [&](int64_t t, int worker) {
          const TileAt at = tile_at(t, f.width, f.height);
          Row<T> rows[kTile];
          start_rows(f, at, rows);
          keep_pixels(f, at, args.mask, uint32_t(args.across.used[at.x / kTile]),
                      uint32_t(args.down.used[at.y / kTile]), rows);
          for_each_contributor(f, t, at, rows, weights + worker * kWeightBlock,
                               [&](int64_t entry, int32_t, uint32_t hit_rows, const T* w) {
                                 for_each_cell(
                                     args, at, hit_rows, w, sums + worker * down_cells * kLanes,
                                     [&](int32_t cell, T value) { visit(entry, cell, value); });
                               });
        });
  }

  // Counts become places, Gaussian after Gaussian.
  void lay_out() {
    int64_t total = 0;
    for (int64_t r = 0; r < ranks; ++r) {
      const int32_t id = args.order[r];
      begin[id] = total;
      for (int64_t e = args.starts[r]; e < args.starts[r + 1]; ++e) {
        const int64_t count = place[args.entries_of[e]];
        place[args.entries_of[e]] = total;
        total += count;
      }
      size[id] = total - begin[id];
    }
    records = scratch<CellRecord<T>>(total);
  }

  // Adds up a Gaussian's records of the same cell, in a grid of zeros that is left as it was found.
  void merge(int64_t id, T* grid) const {
    CellRecord<T>* own = records + begin[id];
    int32_t left = args.cell_width, right = -1, top = args.cell_height, bottom = -1;
    for (int64_t i = 0; i < size[id]; ++i) {
      const int32_t x = own[i].cell % args.cell_width, y = own[i].cell / args.cell_width;
      left = x < left ? x : left;
      right = x > right ? x : right;
      top = y < top ? y : top;
      bottom = y > bottom ? y : bottom;
      grid[own[i].cell] += own[i].value;
    }
    int64_t kept = 0;
    for (int32_t y = top; y <= bottom; ++y)
      for (int32_t cell = y * args.cell_width + left; cell <= y * args.cell_width + right; ++cell) {
        if (grid[cell] == T(0)) continue;
        own[kept++] = {cell, grid[cell]};
        grid[cell] = T(0);
      }
    size[id] = kept;
  }

  void merge_all() const {
    constexpr int64_t kIds = 512;
    T* grids = scratch<T>(thread_count() * cells);
    memset(grids, 0, size_t(thread_count() * cells) * sizeof(T));
    auto task = [&](int64_t index, int worker) {
      const int64_t last = (index + 1) * kIds < ranks ? (index + 1) * kIds : ranks;
      for (int64_t id = index * kIds; id < last; ++id)
        if (size[id]) merge(id, grids + worker * cells);
    };
    parallel_tasks((ranks + kIds - 1) / kIds, task);
  }

  void copy_by_gaussian() const {
    const int64_t N = f.gaussians;
    args.crow[0] = 0;
    for (int64_t n = 0; n < N; ++n) {
      args.crow[n + 1] = args.crow[n];
      for (int64_t i = 0; i < f.images; ++i) args.crow[n + 1] += size[i * N + n];
    }
    int64_t* col;
    T* val;
    args.allocate(args.owner, args.crow[N], &col, &val);
    constexpr int64_t kRows = 512;
    auto task = [&](int64_t index, int) {
      const int64_t last = (index + 1) * kRows < N ? (index + 1) * kRows : N;
      for (int64_t n = index * kRows, at = args.crow[n]; n < last; ++n)
        for (int64_t id = n; id < ranks; id += N)
          for (int64_t k = begin[id]; k < begin[id] + size[id]; ++k, ++at) {
            col[at] = id / N * cells + records[k].cell;
            val[at] = records[k].value;
          }
    };
    parallel_tasks((N + kRows - 1) / kRows, task);
  }

  // The transpose: a counting sort by cell, image by image; Gaussians come in ascending order.
  void copy_by_cell() const {
    const int64_t N = f.gaussians, rows = f.images * cells;
    auto for_each = [&](int64_t image, auto visit) {
      for (int64_t n = 0; n < N; ++n)
        for (int64_t k = begin[image * N + n]; k < begin[image * N + n] + size[image * N + n]; ++k)
          visit(n, image * cells + records[k].cell, records[k].value);
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
  CellMatrix<T> matrix(args, context);
  memset(matrix.place, 0, size_t(args.forward.entries) * sizeof(int64_t));
  matrix.march([&](int64_t entry, int32_t, T) { ++matrix.place[entry]; });
  matrix.lay_out();
  matrix.march([&](int64_t entry, int32_t cell, T value) {
    matrix.records[matrix.place[entry]++] = {cell, value};
  });
  matrix.merge_all();
  if (args.by_cell)
    matrix.copy_by_cell();
  else
    matrix.copy_by_gaussian();
}

}  // namespace pyext::PYEXT_ISA
