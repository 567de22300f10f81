// Sixteen rows of memory as columns in vectors, and back.
#pragma once

#include "core/simd_shuffle.h"

namespace pyext::PYEXT_ISA {

// `count` rows of D values without gaps, one vector per column; rows from `count` on repeat the
// last one.
template <int D, class T>
PYEXT_INLINE void load_rows(const T* p, int count, Lanes<T>* columns) {
  if (count == kLanes) return deinterleave<D>(p, columns);
  for (int k = 0; k < D; ++k) columns[k] = load_strided(p + k, D, count);
}
template <int D, class T>
PYEXT_INLINE void store_rows(const Lanes<T>* columns, T* p, int count) {
  if (count == kLanes) return interleave<D>(columns, p);
  for (int k = 0; k < D; ++k) store_strided(columns[k], p + k, D, count);
}

// Up to sixteen values of `count` rows that begin `stride` apart: columns[k] holds value k of every
// row. What lies beyond `width` and `count` is zero.
template <class T>
PYEXT_INLINE void load_block(const T* p, int64_t stride, int width, int count, Lanes<T>* columns) {
  T x[kLanes][kLanes] = {};
  for (int i = 0; i < count; ++i)
    for (int k = 0; k < width; ++k) x[k][i] = p[i * stride + k];
  for (int k = 0; k < kLanes; ++k) columns[k] = Lanes<T>::load(x[k]);
}
template <class T>
PYEXT_INLINE void store_block(const Lanes<T>* columns, T* p, int64_t stride, int width, int count) {
  T x[kLanes][kLanes];
  for (int k = 0; k < width; ++k) columns[k].store(x[k]);
  for (int i = 0; i < count; ++i)
    for (int k = 0; k < width; ++k) p[i * stride + k] = x[k][i];
}

// Records of eight values, those numbered ids[0..count); beyond `count` the last one is repeated.
template <class T>
PYEXT_INLINE void gather_records(const T* records, const int32_t* ids, int count,
                                 Lanes<T>* columns) {
  T x[8][kLanes];
  for (int i = 0; i < kLanes; ++i)
    for (int k = 0; k < 8; ++k) x[k][i] = records[ids[i < count ? i : count - 1] * int64_t(8) + k];
  for (int k = 0; k < 8; ++k) columns[k] = Lanes<T>::load(x[k]);
}

#if defined(__AVX512F__)

template <>
PYEXT_INLINE void gather_records(const float* records, const int32_t* ids, int count, F* columns) {
  const auto row = [&](int i) {
    return _mm256_loadu_ps(records + ids[i < count ? i : count - 1] * int64_t(8));
  };
  // x[i] holds two records, so that the quarters of a column come out in order.
  __m512 x[8], t[8];
  PYEXT_UNROLL
  for (int i = 0; i < 8; ++i) {
    const int low = i < 4 ? i : i + 4;
    x[i] = _mm512_insertf32x8(_mm512_castps256_ps512(row(low)), row(low + 4), 1);
  }
  PYEXT_UNROLL
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
  }
  PYEXT_UNROLL
  for (int i = 0; i < 8; i += 4) {
    x[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    x[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
    x[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    x[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  // x[c] holds columns c and c + 4 of records 0 to 7, x[4 + c] of the others.
  PYEXT_UNROLL
  for (int c = 0; c < 4; ++c) {
    columns[c] = _mm512_shuffle_f32x4(x[c], x[4 + c], 0x88);
    columns[4 + c] = _mm512_shuffle_f32x4(x[c], x[4 + c], 0xdd);
  }
}

// Rows become columns: pairs, then fours within a quarter of a register, then the quarters.
PYEXT_INLINE void transpose(__m512 x[16]) {
  __m512 t[16];
  PYEXT_UNROLL
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
  }
  PYEXT_UNROLL
  for (int i = 0; i < 16; i += 4) {
    x[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    x[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
    x[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    x[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  // x[4 r + c] holds columns c, c + 4, c + 8, c + 12 of rows 4 r to 4 r + 3.
  PYEXT_UNROLL
  for (int c = 0; c < 4; ++c) {
    const __m512 a = _mm512_shuffle_f32x4(x[c], x[4 + c], 0x88);
    const __m512 b = _mm512_shuffle_f32x4(x[c], x[4 + c], 0xdd);
    const __m512 d = _mm512_shuffle_f32x4(x[8 + c], x[12 + c], 0x88);
    const __m512 e = _mm512_shuffle_f32x4(x[8 + c], x[12 + c], 0xdd);
    t[c] = _mm512_shuffle_f32x4(a, d, 0x88);
    t[4 + c] = _mm512_shuffle_f32x4(b, e, 0x88);
    t[8 + c] = _mm512_shuffle_f32x4(a, d, 0xdd);
    t[12 + c] = _mm512_shuffle_f32x4(b, e, 0xdd);
  }
  PYEXT_UNROLL
  for (int i = 0; i < 16; ++i) x[i] = t[i];
}

template <>
PYEXT_INLINE void load_block(const float* p, int64_t stride, int width, int count, F* columns) {
  const __mmask16 inside = __mmask16((1u << width) - 1);
  __m512 x[16];
  PYEXT_UNROLL
  for (int i = 0; i < 16; ++i)
    x[i] = i < count ? _mm512_maskz_loadu_ps(inside, p + i * stride) : _mm512_setzero_ps();
  transpose(x);
  PYEXT_UNROLL
  for (int i = 0; i < 16; ++i) columns[i] = x[i];
}
template <>
PYEXT_INLINE void store_block(const F* columns, float* p, int64_t stride, int width, int count) {
  const __mmask16 inside = __mmask16((1u << width) - 1);
  __m512 x[16];
  PYEXT_UNROLL
  for (int i = 0; i < 16; ++i) x[i] = columns[i].r;
  transpose(x);
  PYEXT_UNROLL
  for (int i = 0; i < 16; ++i)
    if (i < count) _mm512_mask_storeu_ps(p + i * stride, inside, x[i]);
}

#endif

}  // namespace pyext::PYEXT_ISA
