// Sums of several vectors at once, and interleaving of channels: what moves values between lanes.
#pragma once

#include "core/simd.h"

namespace pyext::PYEXT_ISA {

// out[i] = sum of the lanes of v[i].
template <int N, class T>
PYEXT_INLINE void sum_each(const Lanes<T>* v, T* out) {
  for (int i = 0; i < N; ++i) out[i] = v[i].sum();
}

// [pixel, channel] from one vector per channel and back.
template <int D, class T>
PYEXT_INLINE void interleave(const Lanes<T>* channels, T* out) {
  T x[D][kLanes];
  for (int k = 0; k < D; ++k) channels[k].store(x[k]);
  for (int i = 0; i < kLanes; ++i)
    for (int k = 0; k < D; ++k) out[i * D + k] = x[k][i];
}
template <int D, class T>
PYEXT_INLINE void deinterleave(const T* in, Lanes<T>* channels) {
  T x[D][kLanes];
  for (int i = 0; i < kLanes; ++i)
    for (int k = 0; k < D; ++k) x[k][i] = in[i * D + k];
  for (int k = 0; k < D; ++k) channels[k] = Lanes<T>::load(x[k]);
}

#if defined(__AVX512F__)

// A tree that halves sixteen vectors four times, each step pairing two of them: a third of the
// instructions of sixteen separate sums. Unused ones are zero and fold away.
template <int N>
PYEXT_INLINE void sum_each(const Lanes<float>* v, float* out) {
  static_assert(N <= 16);
  __m512 quarter[4], pair[2];
  for (int q = 0; q < 4; ++q) {
    if (4 * q >= N) {
      quarter[q] = _mm512_setzero_ps();
      continue;
    }
    __m512 half[2];
    for (int h = 0; h < 2; ++h) {
      const int i = 4 * q + 2 * h;
      const __m512 a = i < N ? v[i].r : _mm512_setzero_ps();
      const __m512 b = i + 1 < N ? v[i + 1].r : _mm512_setzero_ps();
      half[h] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
    quarter[q] = _mm512_add_ps(_mm512_shuffle_f32x4(half[0], half[1], 0x88),
                               _mm512_shuffle_f32x4(half[0], half[1], 0xdd));
  }
  for (int p = 0; p < 2; ++p)
    pair[p] = _mm512_add_ps(_mm512_unpacklo_ps(quarter[2 * p], quarter[2 * p + 1]),
                            _mm512_unpackhi_ps(quarter[2 * p], quarter[2 * p + 1]));
  const __m512 all = _mm512_add_ps(_mm512_shuffle_ps(pair[0], pair[1], 0x44),
                                   _mm512_shuffle_ps(pair[0], pair[1], 0xee));
  // Lane 4 k + e holds vector 4 e + k.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_mask_storeu_ps(out, __mmask16((1u << N) - 1), _mm512_permutexvar_ps(order, all));
}

// What the permutations below pick, element by element: of which vector, and where in it.
template <int D>
struct Interleaving {
  static constexpr int kSize = D * kLanes;
  int32_t at[kSize] = {};     // for _mm512_permutex2var of the first two vectors
  __mmask16 from[D][D] = {};  // [out][in]: lanes that come from vector `in`

  // Element e of the interleaved sequence is lane e / D of channel e % D.
  static constexpr Interleaving joining() {
    Interleaving table;
    for (int e = 0; e < kSize; ++e) table.set(e, e % D, e / D);
    return table;
  }
  // Lane i of channel k is element i D + k.
  static constexpr Interleaving splitting() {
    Interleaving table;
    for (int e = 0; e < kSize; ++e) {
      const int source = e % kLanes * D + e / kLanes;
      table.set(e, source / kLanes, source % kLanes);
    }
    return table;
  }

 private:
  constexpr void set(int e, int in, int lane) {
    at[e] = in == 1 ? kLanes + lane : lane;
    from[e / kLanes][in] = __mmask16(from[e / kLanes][in] | 1u << e % kLanes);
  }
};

// Each output takes from two vectors by one permutation, and from each of the others by a masked
// one.
template <int D>
PYEXT_INLINE void permute(const Interleaving<D>& table, const __m512* in, __m512* out) {
  PYEXT_UNROLL
  for (int k = 0; k < D; ++k) {
    const __m512i at = _mm512_loadu_si512(table.at + kLanes * k);
    out[k] = _mm512_permutex2var_ps(in[0], at, in[D > 1 ? 1 : 0]);
    PYEXT_UNROLL
    for (int j = 2; j < D; ++j)
      out[k] = _mm512_mask_permutexvar_ps(out[k], table.from[k][j], at, in[j]);
  }
}

template <int D>
PYEXT_INLINE void interleave(const Lanes<float>* channels, float* out) {
  static constexpr Interleaving<D> table = Interleaving<D>::joining();
  __m512 x[D], y[D];
  for (int k = 0; k < D; ++k) x[k] = channels[k].r;
  permute(table, x, y);
  for (int k = 0; k < D; ++k) _mm512_storeu_ps(out + kLanes * k, y[k]);
}
template <int D>
PYEXT_INLINE void deinterleave(const float* in, Lanes<float>* channels) {
  static constexpr Interleaving<D> table = Interleaving<D>::splitting();
  __m512 x[D], y[D];
  for (int k = 0; k < D; ++k) x[k] = _mm512_loadu_ps(in + kLanes * k);
  permute(table, x, y);
  for (int k = 0; k < D; ++k) channels[k] = y[k];
}

#endif

}  // namespace pyext::PYEXT_ISA
