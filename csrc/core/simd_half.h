// Sixteen lanes from and to memory of any storage type: float, double and the 16-bit types.
#pragma once

#include "core/half.h"
#include "core/simd.h"

namespace pyext::PYEXT_ISA {

template <class S>
using WideLanes = Lanes<Wide<S>>;

template <class S>
PYEXT_INLINE WideLanes<S> load_wide(const S* p) {
  Wide<S> x[kLanes];
  for (int i = 0; i < kLanes; ++i) x[i] = widen(p[i]);
  return WideLanes<S>::load(x);
}
template <>
PYEXT_INLINE Lanes<float> load_wide(const float* p) {
  return Lanes<float>::load(p);
}
template <>
PYEXT_INLINE Lanes<double> load_wide(const double* p) {
  return Lanes<double>::load(p);
}

template <class S>
PYEXT_INLINE void store_narrow(WideLanes<S> a, S* p) {
  Wide<S> x[kLanes];
  a.store(x);
  for (int i = 0; i < kLanes; ++i) p[i] = narrow<S>(x[i]);
}
template <>
PYEXT_INLINE void store_narrow(Lanes<float> a, float* p) {
  a.store(p);
}
template <>
PYEXT_INLINE void store_narrow(Lanes<double> a, double* p) {
  a.store(p);
}

#if defined(__AVX512F__)
template <>
PYEXT_INLINE Lanes<float> load_wide(const BFloat16* p) {
  const __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
}
template <>
PYEXT_INLINE Lanes<float> load_wide(const Float16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
PYEXT_INLINE __m256i rounded_to_bfloat16(__m512 a) {
  const __m512i bits = _mm512_castps_si512(a);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(up, nan, quiet), 16));
}
template <>
PYEXT_INLINE void store_narrow(Lanes<float> a, BFloat16* p) {
#if defined(__AVX512BF16__)
  constexpr int kDenormal = 0x20;  // which the instruction takes for zeros
  const __m256i x = __builtin_expect(_mm512_fpclass_ps_mask(a.r, kDenormal), 0)
                        ? rounded_to_bfloat16(a.r)
                        : (__m256i)_mm512_cvtneps_pbh(a.r);
#else
  const __m256i x = rounded_to_bfloat16(a.r);
#endif
  _mm256_storeu_si256((__m256i*)p, x);
}
template <>
PYEXT_INLINE void store_narrow(Lanes<float> a, Float16* p) {
  _mm256_storeu_si256((__m256i*)p,
                      _mm512_cvtps_ph(a.r, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#endif

#if defined(__AVX2__) && !defined(__AVX512F__)
template <>
PYEXT_INLINE Lanes<float> load_wide(const BFloat16* p) {
  Lanes<float> out;
  for (int i = 0; i < Lanes<float>::kCount; ++i) {
    const __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)(p + 8 * i)));
    out.r[i] = (Lanes<float>::Register)_mm256_slli_epi32(x, 16);
  }
  return out;
}
template <>
PYEXT_INLINE Lanes<float> load_wide(const Float16* p) {
  Lanes<float> out;
  for (int i = 0; i < Lanes<float>::kCount; ++i)
    out.r[i] =
        (Lanes<float>::Register)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8 * i)));
  return out;
}
// The bits of eight bfloat16, each in a word of its own.
PYEXT_INLINE __m256i rounded_to_bfloat16(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  return _mm256_srli_epi32(_mm256_blendv_epi8(up, quiet, nan), 16);
}
template <>
PYEXT_INLINE void store_narrow(Lanes<float> a, BFloat16* p) {
  const __m256i low = rounded_to_bfloat16((__m256)a.r[0]);
  const __m256i high = rounded_to_bfloat16((__m256)a.r[1]);
  const __m256i x = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
  _mm256_storeu_si256((__m256i*)p, x);
}
template <>
PYEXT_INLINE void store_narrow(Lanes<float> a, Float16* p) {
  constexpr int kRound = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  const __m128i low = _mm256_cvtps_ph((__m256)a.r[0], kRound);
  const __m128i high = _mm256_cvtps_ph((__m256)a.r[1], kRound);
  _mm256_storeu_si256((__m256i*)p, _mm256_set_m128i(high, low));
}
#endif

// How many lanes a step of a loop has: all, known to the compiler, or the first `count`. Those
// beyond are zero when loaded, and not stored.
struct AllLanes {
  PYEXT_INLINE operator int() const { return kLanes; }
};
struct FirstLanes {
  int count;
  PYEXT_INLINE FirstLanes(int count_) : count(count_) {}
  PYEXT_INLINE operator int() const { return count; }
};

template <class S>
PYEXT_INLINE WideLanes<S> load_wide(const S* p, AllLanes) {
  return load_wide(p);
}
template <class S>
PYEXT_INLINE WideLanes<S> load_wide(const S* p, FirstLanes lanes) {
  if (lanes.count >= kLanes) return load_wide(p);
  Wide<S> x[kLanes] = {};
  for (int i = 0; i < lanes.count; ++i) x[i] = widen(p[i]);
  return WideLanes<S>::load(x);
}
template <class S>
PYEXT_INLINE void store_narrow(WideLanes<S> a, S* p, AllLanes) {
  store_narrow(a, p);
}
template <class S>
PYEXT_INLINE void store_narrow(WideLanes<S> a, S* p, FirstLanes lanes) {
  if (lanes.count >= kLanes) return store_narrow(a, p);
  Wide<S> x[kLanes];
  a.store(x);
  for (int i = 0; i < lanes.count; ++i) p[i] = narrow<S>(x[i]);
}

// Calls body(i, lanes) for sixteen of n neighbours at a time; the last call may have fewer.
template <class Body>
PYEXT_INLINE void for_each_lanes(int64_t n, Body body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, AllLanes());
  if (i < n) body(i, FirstLanes(int(n - i)));
}

}  // namespace pyext::PYEXT_ISA
