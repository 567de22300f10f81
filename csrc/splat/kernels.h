// The contract between the torch binding and every backend of the family `splat`.
//
// A backend (one CPU instruction set, or CUDA) fills one table of function pointers. It sees raw
// pointers and sizes only: shapes, dtypes and contiguity were checked by bind/. All arrays are
// contiguous. B batches, C cameras, N Gaussians, I = B * C images, D feature channels.
#pragma once

#include <cstdint>

#include "core/context.h"

namespace pyext::splat {

constexpr int kTile = 16;  // a tile is kTile x kTile pixels

template <class T>
struct ProjectArgs {
  int64_t batches, cameras, gaussians;
  const T* means;      // [B, N, 3] world
  const T* covars;     // [B, N, 6] upper triangle 00 01 02 11 12 22, or null
  const T* quats;      // [B, N, 4] wxyz, any norm > 0; null when covars is given
  const T* scales;     // [B, N, 3]; null when covars is given
  const T* opacities;  // [B, N] or null (then the extent is the full 3.33 sigma)
  const T* viewmats;   // [B, C, 4, 4] world to camera
  const T* Ks;         // [B, C, 3, 3] pixels
  int32_t width, height;
  T eps2d, near_plane, far_plane, radius_clip;
  bool ortho;        // orthographic instead of pinhole
  bool circle;       // extent: one radius of 3 sigma along the longer axis, whatever the opacity
  bool compensate;   // opacities are scaled by compensations
  T rho_min;         // least compensation
  int32_t* radii;    // [B, C, N, 2] out; both 0 where culled
  T* means2d;        // [B, C, N, 2] out, pixels; this and the next ones are 0 where culled
  T* depths;         // [B, C, N] out, camera z
  T* conics;         // [B, C, N, 3] out, inverse 2-D covariance a b c
  T* compensations;  // [B, C, N] out, null unless compensate
};

template <class T>
struct ProjectBackwardArgs {
  ProjectArgs<T> forward;    // inputs and the forward's radii; its other outputs are not read
  const T* g_means2d;        // [B, C, N, 2]
  const T* g_depths;         // [B, C, N]
  const T* g_conics;         // [B, C, N, 3]
  const T* g_compensations;  // [B, C, N], null unless compensate
  T* g_means;                // [B, N, 3] out, summed over cameras
  T* g_covars;               // [B, N, 6] out or null
  T* g_quats;                // [B, N, 4] out or null
  T* g_scales;               // [B, N, 3] out or null
  T* g_viewmats;             // [B, C, 4, 4] out
  T* g_Ks;                   // [B, C, 3, 3] out
};

template <class T>
struct ShArgs {
  int64_t batches, cameras, gaussians, channels;
  int degree;            // 0 to 4, of (degree + 1)^2 bases
  int64_t coefficients;  // K >= (degree + 1)^2; those beyond are not read
  bool shared;           // one set of coefficients for all cameras
  const T* means;        // [B, N, 3] world
  const T* centres;      // [B, C, 3] world, of the cameras
  const T* coeffs;       // [B, 1 if shared else C, N, K, D]
  const int32_t* radii;  // [B, C, N, 2] or null; what is not > 0 is culled
  T* colours;            // [B, C, N, D] out, 0 where culled
};

template <class T>
struct ShBackwardArgs {
  ShArgs<T> forward;   // its colours are not read
  const T* g_colours;  // [B, C, N, D]
  T* g_means;          // [B, N, 3] out, summed over cameras
  T* g_centres;        // [B, C, 3] out
  T* g_coeffs;         // like coeffs, out: the first (degree + 1)^2, summed over cameras if shared
};

template <class T>
struct BinArgs {
  int64_t images, gaussians;
  const T* means2d;       // [I, N, 2]
  const int32_t* radii;   // [I, N, 2]
  const T* depths;        // [I, N] > 0
  const T* conics;        // [I, N, 3]
  const T* opacities;     // [I, N]
  int32_t width, height;  // tiles: ceil(width / kTile) by ceil(height / kTile), row-major
  bool exact;             // tiles the ellipse reaches, instead of the bounding box
  int64_t* tile_offsets;  // [I * tiles + 1] out: first entry of each tile
  int32_t* order;         // [I * N] out: flat ids i * N + n, image by image, visible ones first,
                          //   front to back (equal depths: by index)
  int64_t* starts;        // [I * N + 1] out: the entries of order[r] are
                          //   entries[starts[r] .. starts[r + 1])
  void* owner;            // passed back to `allocate`
  // Called once, when the number of (tile, Gaussian) entries M is known.
  void (*allocate)(void* owner, int64_t entries, int32_t** tile_ids, int32_t** entries_of);
  // tile_ids [M]: flat ids, tile by tile, front to back within a tile.
  // entries_of [M]: for each Gaussian in `order`, the positions in tile_ids, ascending.
};

template <class T>
struct CompositeArgs {
  int64_t images, gaussians, channels;
  const T* means2d;             // [I, N, 2]
  const T* conics;              // [I, N, 3]
  const T* opacities;           // [I, N]
  const T* features;            // [I, N, D]
  const int64_t* tile_offsets;  // [I * tiles + 1]
  const int32_t* tile_ids;      // [M]
  int64_t entries;              // M
  int32_t width, height;
  T alpha_max;
  T* out;            // [I, H, W, D] out: sum of alpha T f, no background
  T* transmittance;  // [I, H, W] out: T after the last Gaussian
  int32_t* last;     // [I, H, W] out: position in tile_ids of the last contributor, -1 if none
};

template <class T>
struct CompositeBackwardArgs {
  CompositeArgs<T> forward;  // inputs, and the forward's transmittance and last
  const int32_t* order;      // [I * N], starts [I * N + 1], entries_of [M]: see BinArgs
  const int64_t* starts;
  const int32_t* entries_of;
  const T* g_out;            // [I, H, W, D]
  const T* g_transmittance;  // [I, H, W]
  T* g_means2d;              // [I, N, 2] out (every element is written, 0 where invisible)
  T* g_conics;               // [I, N, 3] out
  T* g_opacities;            // [I, N] out
  T* g_features;             // [I, N, D] out
  T* g_absolute;             // [I, N, 2] out or null: |gradient to means2d| of each pixel, summed
};

// Pixel values back to Gaussians: the adjoint of the compositor, with its weights.
template <class T>
struct UnprojectArgs {
  CompositeArgs<T> forward;  // geometry and lists; `channels` is D, features and outputs are null
  const int32_t* order;      // [I * N], starts [I * N + 1], entries_of [M]: see BinArgs
  const int64_t* starts;
  const int32_t* entries_of;
  const T* values;   // [I, H, W, D]; D may be 0
  const bool* mask;  // [I, H, W], false where a pixel is left out; null: all count
  bool count;        // add up values as they are, not times their weight
  T* sum;            // [I, N, D] out
  T* mass;           // [I, N] out: sum of weights
  int32_t* hits;     // [I, N] out: number of pixels contributed to
};

// One axis of a separable linear map from the pixels of an image to a grid of cells.
template <class T>
struct AxisMap {
  const int32_t* starts;  // [tiles + 1]: what a tile's pixels map to is [starts[t], starts[t + 1])
  const int32_t* cells;   // ascending within a tile
  const T* weights;       // [, kTile]: of each of the tile's pixels
  const int32_t* used;    // [tiles]: bit p is set where pixel p of the tile has any weight
};

// The matrix of (weights)^T times such a map, in compressed sparse rows.
template <class T>
struct CellsArgs {
  CompositeArgs<T> forward;  // geometry and lists; channels is 0
  const int32_t* order;      // [I * N], starts [I * N + 1], entries_of [M]: see BinArgs
  const int64_t* starts;
  const int32_t* entries_of;
  const bool* mask;  // [I, H, W] or null, as in UnprojectArgs
  bool count;        // 1 for every pixel contributed to, not its weight
  AxisMap<T> across, down;
  int32_t cell_width, cell_height;
  bool by_cell;  // rows are cells: [I cells, N]; otherwise they are Gaussians: [N, I cells]
  T* mass;       // [I, N] out, hits [I, N] out: as in UnprojectArgs; both null when by_cell
  int32_t* hits;
  int64_t* crow;  // [rows + 1] out
  void* owner;    // passed back to `allocate`
  // Called once, when the number of non-zeros is known: their columns, ascending in a row, and
  // values.
  void (*allocate)(void* owner, int64_t nonzeros, int64_t** col, T** val);
};

// The Gaussians behind each pixel.
template <class T>
struct ContributorsArgs {
  CompositeArgs<T> forward;  // geometry and lists; channels is 0
  int64_t k;
  int32_t* ids;    // [I, H, W, k] out: index n in 0 .. N - 1 by descending weight, then -1
  T* weights;      // [I, H, W, k] out, then 0
  int32_t* count;  // [I, H, W] out: of all contributors
};

template <class T>
struct Kernels {
  void (*project)(const ProjectArgs<T>&, const Context&);
  void (*project_backward)(const ProjectBackwardArgs<T>&, const Context&);
  void (*sh)(const ShArgs<T>&, const Context&);
  void (*sh_backward)(const ShBackwardArgs<T>&, const Context&);
  void (*bin)(const BinArgs<T>&, const Context&);
  void (*composite)(const CompositeArgs<T>&, const Context&);
  void (*composite_backward)(const CompositeBackwardArgs<T>&, const Context&);
  void (*unproject)(const UnprojectArgs<T>&, const Context&);
  void (*cells)(const CellsArgs<T>&, const Context&);
  void (*contributors)(const ContributorsArgs<T>&, const Context&);
};

// One backend. f64 is null where a backend computes in float32 only.
struct Backend {
  const Kernels<float>* f32;
  const Kernels<double>* f64;
};

}  // namespace pyext::splat
