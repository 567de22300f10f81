// Sixteen values of any storage type as doubles: for sums that must not lose digits.
#pragma once

#include "core/simd_half.h"

namespace pyext::PYEXT_ISA {

PYEXT_INLINE Lanes<double> to_double(Lanes<double> a) { return a; }
PYEXT_INLINE Lanes<double> to_double(Lanes<float> a) {
#if defined(__AVX512F__)
  Lanes<double> out;
  out.r[0] = (Lanes<double>::Register)_mm512_cvtps_pd(_mm512_castps512_ps256(a.r));
  out.r[1] = (Lanes<double>::Register)_mm512_cvtps_pd(_mm512_extractf32x8_ps(a.r, 1));
  return out;
#elif defined(__AVX2__)
  Lanes<double> out;
  for (int i = 0; i < Lanes<float>::kCount; ++i) {
    const __m256 x = (__m256)a.r[i];
    out.r[2 * i] = (Lanes<double>::Register)_mm256_cvtps_pd(_mm256_castps256_ps128(x));
    out.r[2 * i + 1] = (Lanes<double>::Register)_mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
  }
  return out;
#else
  float x[kLanes];
  double y[kLanes];
  a.store(x);
  for (int i = 0; i < kLanes; ++i) y[i] = double(x[i]);
  return Lanes<double>::load(y);
#endif
}

#if defined(__AVX512F__)
PYEXT_INLINE __m256 load_eight(const float* p) { return _mm256_loadu_ps(p); }
PYEXT_INLINE __m256 load_eight(const Float16* p) {
  return _mm256_maskz_cvtph_ps(0xff, _mm_loadu_si128((const __m128i*)p));
}
PYEXT_INLINE __m256 load_eight(const BFloat16* p) {
  const __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
}
#endif

template <class S>
PYEXT_INLINE Lanes<double> load_double(const S* p, FirstLanes lanes) {
  return to_double(load_wide(p, lanes));
}
template <class S>
PYEXT_INLINE Lanes<double> load_double(const S* p, AllLanes) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) < sizeof(double)) {  // by halves: taking out an upper half is a step more
    Lanes<double> out;
    for (int i = 0; i < 2; ++i)
      out.r[i] = (Lanes<double>::Register)_mm512_cvtps_pd(load_eight(p + 8 * i));
    return out;
  }
#endif
  return to_double(load_wide(p));
}

}  // namespace pyext::PYEXT_ISA
