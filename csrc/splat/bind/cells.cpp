// Torch ops: the matrices between Gaussians and the cells of a grid, with torch's bilinear rule
// (align_corners=False, no antialiasing) built in.
#include <algorithm>
#include <array>
#include <map>
#include <vector>

#include "splat/bind/drawn.h"

namespace pyext::splat {
namespace {

// The two samples, of `in` along an axis, that place `i` of `out` is interpolated from.
struct Taps {
  int64_t first, second;
  double weight;  // of the second
  Taps(int64_t i, int64_t in, int64_t out) {
    const double at = std::max((double(i) + 0.5) * double(in) / double(out) - 0.5, 0.0);
    first = std::min(int64_t(at), in - 1);
    second = std::min(first + 1, in - 1);
    weight = at - double(first);
  }
};

// One axis of the map from pixels to cells, on the device of the Gaussians.
struct Axis {
  Tensor starts, cells, weights, used;

  // `upsample`: a pixel is interpolated from cells; otherwise a cell from pixels.
  Axis(int64_t pixels, int64_t cell_count, bool upsample, const at::TensorOptions& options) {
    const int64_t tiles = (pixels + kTile - 1) / kTile;
    std::vector<std::map<int64_t, std::array<double, kTile>>> by_tile(static_cast<size_t>(tiles));
    auto add = [&](int64_t pixel, int64_t cell, double weight) {
      if (weight != 0) by_tile[size_t(pixel / kTile)][cell][size_t(pixel % kTile)] += weight;
    };
    if (upsample) {
      for (int64_t p = 0; p < pixels; ++p) {
        const Taps taps(p, cell_count, pixels);
        add(p, taps.first, 1 - taps.weight);
        add(p, taps.second, taps.weight);
      }
    } else {
      for (int64_t c = 0; c < cell_count; ++c) {
        const Taps taps(c, pixels, cell_count);
        add(taps.first, c, 1 - taps.weight);
        add(taps.second, c, taps.weight);
      }
    }
    std::vector<int32_t> starts_{0}, cells_, used_;
    std::vector<double> weights_;
    for (const auto& tile : by_tile) {
      int32_t bits = 0;
      for (const auto& [cell, row] : tile) {
        cells_.push_back(int32_t(cell));
        weights_.insert(weights_.end(), row.begin(), row.end());
        for (size_t p = 0; p < row.size(); ++p) bits |= int32_t(row[p] != 0) << p;
      }
      starts_.push_back(int32_t(cells_.size()));
      used_.push_back(bits);
    }
    const auto integers = options.dtype(at::kInt);
    starts = at::tensor(starts_, at::kInt).to(integers);
    cells = at::tensor(cells_, at::kInt).to(integers);
    used = at::tensor(used_, at::kInt).to(integers);
    weights = at::tensor(weights_, at::kDouble).to(options);
  }

  template <class T>
  AxisMap<T> map() const {
    return {data<int32_t>(starts), data<int32_t>(cells), data<T>(weights), data<int32_t>(used)};
  }
};

// Receives the number of non-zeros and makes their arrays.
template <class T>
struct NonZeros {
  at::TensorOptions options;
  Tensor col, val;
  static void allocate(void* self, int64_t nonzeros, int64_t** col, T** val) {
    auto* to = static_cast<NonZeros*>(self);
    to->col = at::empty({nonzeros}, to->options.dtype(at::kLong));
    to->val = at::empty({nonzeros}, to->options);
    *col = data<int64_t>(to->col);
    *val = data<T>(to->val);
  }
};

int32_t grid_side(int64_t size, const char* name) {
  TORCH_CHECK_VALUE(size >= 1 && size <= (1 << 14), name, ": expected 1 to 16384 cells, got ",
                    size);
  return int32_t(size);
}

// `mass` and `hits` [I, N] are filled where they are defined.
std::tuple<Tensor, Tensor, Tensor> matrix(const Drawn& in, const OptionalTensor& mask_, bool count,
                                          int64_t cell_height, int64_t cell_width, bool by_cell,
                                          const Tensor& mass, const Tensor& hits) {
  const Tensor mask = in.mask(mask_);
  const int32_t h = grid_side(cell_height, "cell_height"), w = grid_side(cell_width, "cell_width");
  const auto options = in.means2d.options().requires_grad(false);
  const int64_t rows = by_cell ? in.I * h * w : in.N;
  Tensor crow = at::zeros({rows + 1}, options.dtype(at::kLong));
  Tensor col = at::empty({0}, options.dtype(at::kLong)), val = at::empty({0}, options);
  Scratch scratch(in.means2d);
  dispatch(in.means2d, "means2d", [&](auto zero) {
    using T = decltype(zero);
    if (in.I * in.N == 0) return;
    const Axis across(in.width, w, !by_cell, options), down(in.height, h, !by_cell, options);
    NonZeros<T> made{options, col, val};
    const CellsArgs<T> args{in.args<T>(0),
                            data<int32_t>(in.order),
                            data<int64_t>(in.starts),
                            data<int32_t>(in.entries_of),
                            data<bool>(mask),
                            count,
                            across.map<T>(),
                            down.map<T>(),
                            w,
                            h,
                            by_cell,
                            data<T>(mass),
                            data<int32_t>(hits),
                            data<int64_t>(crow),
                            &made,
                            &NonZeros<T>::allocate};
    kernels_for<T>(in.means2d).cells(args, context_for(in.means2d, scratch));
    col = made.col;
    val = made.val;
  });
  return {crow, col, val};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> splat_unproject_cells(
    const Tensor& means2d, const Tensor& conics, const Tensor& opacities,
    const OptionalTensor& mask, const Tensor& tile_offsets, const Tensor& tile_ids,
    const Tensor& order, const Tensor& starts, const Tensor& entries_of, int64_t width,
    int64_t height, double alpha_max, bool count, int64_t cell_height, int64_t cell_width) {
  const Drawn in(means2d, conics, opacities, tile_offsets, tile_ids, order, starts, entries_of,
                 width, height, alpha_max);
  const auto options = in.means2d.options().requires_grad(false);
  const Tensor mass = at::empty({in.I, in.N}, options);
  const Tensor hits = at::empty({in.I, in.N}, options.dtype(at::kInt));
  auto [crow, col, val] = matrix(in, mask, count, cell_height, cell_width, false, mass, hits);
  return {crow, col, val, mass, hits};
}

std::tuple<Tensor, Tensor, Tensor> splat_render_cells(
    const Tensor& means2d, const Tensor& conics, const Tensor& opacities,
    const Tensor& tile_offsets, const Tensor& tile_ids, const Tensor& order, const Tensor& starts,
    const Tensor& entries_of, int64_t width, int64_t height, double alpha_max, int64_t cell_height,
    int64_t cell_width) {
  const Drawn in(means2d, conics, opacities, tile_offsets, tile_ids, order, starts, entries_of,
                 width, height, alpha_max);
  return matrix(in, std::nullopt, false, cell_height, cell_width, true, {}, {});
}

void define(torch::Library& m) {
  m.def(
      "splat_unproject_cells(Tensor means2d, Tensor conics, Tensor opacities, Tensor? mask, "
      "Tensor tile_offsets, Tensor tile_ids, Tensor order, Tensor starts, Tensor entries_of, "
      "int width, int height, float alpha_max, bool count, int cell_height, int cell_width) "
      "-> (Tensor crow, Tensor col, Tensor val, Tensor mass, Tensor hits)");
  m.def(
      "splat_render_cells(Tensor means2d, Tensor conics, Tensor opacities, Tensor tile_offsets, "
      "Tensor tile_ids, Tensor order, Tensor starts, Tensor entries_of, int width, int height, "
      "float alpha_max, int cell_height, int cell_width) "
      "-> (Tensor crow, Tensor col, Tensor val)");
}

void implement(torch::Library& m) {
  m.impl("splat_unproject_cells", &splat_unproject_cells);
  m.impl("splat_render_cells", &splat_render_cells);
}

}  // namespace

PYEXT_OPS(define, implement)

}  // namespace pyext::splat
