// Loops over Gaussians, sixteen at a time, in chunks of fixed size: a sum over a chunk, and over
// chunks in order, does not depend on the number of threads.
#pragma once

#include "core/parallel.h"
#include "core/simd.h"

namespace pyext::PYEXT_ISA {

constexpr int64_t kChunk = 1024;  // Gaussians per task

inline int64_t chunks_of(int64_t gaussians) { return (gaussians + kChunk - 1) / kChunk; }

// Calls body(batch, chunk, first, last) for chunks of every batch's Gaussians; chunk counts
// through all batches.
template <class Body>
void for_each_chunk(int64_t batches, int64_t gaussians, Body body) {
  const int64_t chunks = chunks_of(gaussians);
  auto task = [&](int64_t chunk, int) {
    const int64_t first = chunk % chunks * kChunk, last = first + kChunk;
    body(chunk / chunks, chunk, first, last < gaussians ? last : gaussians);
  };
  parallel_tasks(batches * chunks, task);
}

// Calls body(n, count) for the groups of a chunk.
template <class Body>
PYEXT_INLINE void for_each_group(int64_t first, int64_t last, Body body) {
  for (int64_t n = first; n < last; n += kLanes)
    body(n, int(last - n < kLanes ? last - n : kLanes));
}

// Which of `count` Gaussians are not culled; all of them where there are no radii.
template <class T>
PYEXT_INLINE Mask<T> visible_lanes(const int32_t* radii, int count) {
  if (!radii) return Mask<T>::first(count);
  T seen[kLanes] = {};
  for (int i = 0; i < count; ++i) seen[i] = T((radii[2 * i] > 0) & (radii[2 * i + 1] > 0));
  return Lanes<T>::load(seen) > Lanes<T>(T(0));
}

// Sums of the chunks' shares [batches, chunks, cameras, K] of one image, into out [K].
template <int K, class T>
void sum_chunks(const T* shares, int64_t chunks, int64_t cameras, int64_t image, T* out) {
  for (int i = 0; i < K; ++i) out[i] = T(0);
  const int64_t batch = image / cameras, camera = image % cameras;
  for (int64_t chunk = batch * chunks; chunk < (batch + 1) * chunks; ++chunk)
    for (int i = 0; i < K; ++i) out[i] += shares[(chunk * cameras + camera) * K + i];
}

}  // namespace pyext::PYEXT_ISA
