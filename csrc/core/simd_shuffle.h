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

// Three channels: each output register takes from two by one permutation, from the third by a
// masked one.
template <>
PYEXT_INLINE void interleave<3>(const Lanes<float>* c, float* out) {
  const __m512i rg0 = _mm512_setr_epi32(0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 4, 20, 0, 5);
  const __m512i rg1 = _mm512_setr_epi32(21, 0, 6, 22, 0, 7, 23, 0, 8, 24, 0, 9, 25, 0, 10, 26);
  const __m512i rg2 = _mm512_setr_epi32(0, 11, 27, 0, 12, 28, 0, 13, 29, 0, 14, 30, 0, 15, 31, 0);
  const __m512i b0 = _mm512_setr_epi32(0, 0, 0, 0, 0, 1, 0, 0, 2, 0, 0, 3, 0, 0, 4, 0);
  const __m512i b1 = _mm512_setr_epi32(0, 5, 0, 0, 6, 0, 0, 7, 0, 0, 8, 0, 0, 9, 0, 0);
  const __m512i b2 = _mm512_setr_epi32(10, 0, 0, 11, 0, 0, 12, 0, 0, 13, 0, 0, 14, 0, 0, 15);
  const __m512 r = c[0].r, g = c[1].r, b = c[2].r;
  _mm512_storeu_ps(out,
                   _mm512_mask_permutexvar_ps(_mm512_permutex2var_ps(r, rg0, g), 0x4924, b0, b));
  _mm512_storeu_ps(out + 16,
                   _mm512_mask_permutexvar_ps(_mm512_permutex2var_ps(r, rg1, g), 0x2492, b1, b));
  _mm512_storeu_ps(out + 32,
                   _mm512_mask_permutexvar_ps(_mm512_permutex2var_ps(r, rg2, g), 0x9249, b2, b));
}

template <>
PYEXT_INLINE void deinterleave<3>(const float* in, Lanes<float>* c) {
  const __m512 x = _mm512_loadu_ps(in), y = _mm512_loadu_ps(in + 16), z = _mm512_loadu_ps(in + 32);
  for (int k = 0; k < 3; ++k) {
    // Element 3 i + k of the 48: the first 32 by one permutation, the rest by a masked one.
    const __m512i at = _mm512_add_epi32(
        _mm512_setr_epi32(0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42, 45),
        _mm512_set1_epi32(k));
    const __mmask16 late = _mm512_cmpge_epi32_mask(at, _mm512_set1_epi32(32));
    c[k] = _mm512_mask_permutexvar_ps(_mm512_permutex2var_ps(x, at, y), late,
                                      _mm512_sub_epi32(at, _mm512_set1_epi32(32)), z);
  }
}

#endif

}  // namespace pyext::PYEXT_ISA
