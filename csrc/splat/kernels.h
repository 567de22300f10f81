// The contract between the torch binding and every backend of the family `splat`.
//
// A backend (one CPU instruction set, or CUDA) fills one table of function pointers. It sees raw
// pointers and sizes only: shapes, dtypes and contiguity were checked by bind/. All arrays are
// contiguous. B batches, C cameras, N Gaussians, I = B * C images, D feature channels.
#pragma once

#include <cstdint>

namespace pyext::splat {

constexpr int kTile = 16;  // a tile is kTile x kTile pixels

// What a backend may ask of its caller while it runs.
struct Context {
  void* stream;                                  // cudaStream_t, null on the CPU
  void* owner;                                   // passed back to `scratch`
  void* (*scratch)(void* owner, int64_t bytes);  // device memory, released after the call
};

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
  int32_t* radii;  // [B, C, N, 2] out; both 0 where culled
  T* means2d;      // [B, C, N, 2] out, pixels; this and the next two are 0 where culled
  T* depths;       // [B, C, N] out, camera z
  T* conics;       // [B, C, N, 3] out, inverse 2-D covariance a b c
};

template <class T>
struct ProjectBackwardArgs {
  ProjectArgs<T> forward;  // inputs and the forward's radii; its other outputs are not read
  const T* g_means2d;      // [B, C, N, 2]
  const T* g_depths;       // [B, C, N]
  const T* g_conics;       // [B, C, N, 3]
  T* g_means;              // [B, N, 3] out, summed over cameras
  T* g_covars;             // [B, N, 6] out or null
  T* g_quats;              // [B, N, 4] out or null
  T* g_scales;             // [B, N, 3] out or null
  T* g_viewmats;           // [B, C, 4, 4] out or null (not wanted)
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
};

template <class T>
struct Kernels {
  void (*project)(const ProjectArgs<T>&, const Context&);
  void (*project_backward)(const ProjectBackwardArgs<T>&, const Context&);
  void (*bin)(const BinArgs<T>&, const Context&);
  void (*composite)(const CompositeArgs<T>&, const Context&);
  void (*composite_backward)(const CompositeBackwardArgs<T>&, const Context&);
};

// One backend. f64 is null where a backend computes in float32 only.
struct Backend {
  const Kernels<float>* f32;
  const Kernels<double>* f64;
};

}  // namespace pyext::splat
