// 2^x and log2(x) for sixteen lanes. Polynomials are relative minimax fits over the reduced range:
// 2^f on [-1/2, 1/2] to 7.5e-8, log2 on [sqrt(1/2), sqrt(2)] to 7e-10 before rounding.
#pragma once

#include "core/simd.h"

namespace pyext::PYEXT_ISA {

template <class V>
PYEXT_INLINE V exp2_polynomial(V f) {
  V p = fma(V(1.3276472e-3f), f, V(9.6755410e-3f));
  p = fma(p, f, V(5.5507131e-2f));
  p = fma(p, f, V(2.4022120e-1f));
  p = fma(p, f, V(6.9314694e-1f));
  return fma(p, f, V(1.0000001f));
}

#if defined(__AVX512F__)

PYEXT_INLINE Lanes<float> vexp2(Lanes<float> x) {
  const __m512 whole = _mm512_roundscale_ps(x.r, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return _mm512_scalef_ps(exp2_polynomial(Lanes<float>(_mm512_sub_ps(x.r, whole))).r, whole);
}

PYEXT_INLINE Lanes<float> split_exponent(Lanes<float> x, Lanes<float>& exponent) {
  // Mantissa in [1, 2), then moved to [sqrt(1/2), sqrt(2)).
  const __m512 m = _mm512_getmant_ps(x.r, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
  const __mmask16 high = _mm512_cmp_ps_mask(m, _mm512_set1_ps(1.41421356f), _CMP_GE_OQ);
  const __m512 e = _mm512_getexp_ps(x.r);
  exponent = _mm512_mask_add_ps(e, high, e, _mm512_set1_ps(1.0f));
  return _mm512_mask_mul_ps(m, high, m, _mm512_set1_ps(0.5f));
}

#else

// The magic constant 1.5 * 2^23 leaves the rounded integer in the low bits of the sum.
PYEXT_INLINE Lanes<float> vexp2(Lanes<float> x) {
  using Int = typename Mask<float>::Register;
  const Lanes<float> magic(12582912.0f);
  x = vmax(x, Lanes<float>(-126.0f));
  const Lanes<float> shifted = x + magic;
  Lanes<float> p = exp2_polynomial(x - (shifted - magic));
  for (int i = 0; i < Lanes<float>::kCount; ++i) {
    const Int whole = (Int)shifted.r[i] - (Int)magic.r[i];
    p.r[i] = (typename Lanes<float>::Register)((Int)p.r[i] + (whole << 23));
  }
  return p;
}

PYEXT_INLINE Lanes<float> split_exponent(Lanes<float> x, Lanes<float>& exponent) {
  using Int = typename Mask<float>::Register;
  using Float = typename Lanes<float>::Register;
  Lanes<float> mantissa;
  for (int i = 0; i < Lanes<float>::kCount; ++i) {
    // Subtracting the bits of sqrt(1/2) makes the exponent field count from there.
    const Int offset = (Int)x.r[i] - 0x3f3504f3;
    const Int e = offset >> 23;
    exponent.r[i] = __builtin_convertvector(e, Float);
    mantissa.r[i] = (Float)((Int)x.r[i] - (e << 23));
  }
  return mantissa;
}

#endif

// For positive, finite, normal x.
PYEXT_INLINE Lanes<float> vlog2(Lanes<float> x) {
  using V = Lanes<float>;
  V exponent;
  const V m = split_exponent(x, exponent);
  const V t = (m - V(1.0f)) / (m + V(1.0f));
  const V z = t * t;
  V p = fma(V(0.43173587f), z, V(0.57671440f));
  p = fma(p, z, V(0.96179885f));
  p = fma(p, z, V(2.88539004f));
  return fma(p, t, exponent);
}

PYEXT_INLINE Lanes<double> vexp2(Lanes<double> x) {
  return each(x, [](double v) { return ::exp2(v); });
}
PYEXT_INLINE Lanes<double> vlog2(Lanes<double> x) {
  return each(x, [](double v) { return ::log2(v); });
}

}  // namespace pyext::PYEXT_ISA
