// Sixteen lanes of float or double, whatever the machine's register width: one row of a tile, or
// sixteen Gaussians. The AVX-512 float version is one register with a hardware mask; all others
// are arrays of the widest native vector, in the compiler's vector extensions.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "core/isa_namespace.h"
#include "core/scalar.h"

#define PYEXT_INLINE inline __attribute__((always_inline))

namespace pyext::PYEXT_ISA {

constexpr int kLanes = 16;

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
#elif defined(__AVX2__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif

template <class T>
struct IntOf;
template <>
struct IntOf<float> {
  using type = int32_t;
};
template <>
struct IntOf<double> {
  using type = int64_t;
};

// A mask of sixteen lanes: all bits of a lane set or none.
template <class T>
struct Mask {
  using Int = typename IntOf<T>::type;
  typedef Int Register __attribute__((vector_size(kRegisterBytes)));
  static constexpr int kWidth = kRegisterBytes / int(sizeof(T));
  static constexpr int kCount = kLanes / kWidth;
  Register r[kCount];

  static PYEXT_INLINE Mask none() {
    Mask m;
    for (int i = 0; i < kCount; ++i) m.r[i] = Register{};
    return m;
  }
  // Lanes [0, count).
  static PYEXT_INLINE Mask first(int count) {
    Mask m;
    for (int i = 0; i < kCount; ++i)
      for (int j = 0; j < kWidth; ++j) m.r[i][j] = i * kWidth + j < count ? Int(-1) : Int(0);
    return m;
  }
  PYEXT_INLINE uint32_t bits() const {
    uint32_t out = 0;
    for (int i = 0; i < kCount; ++i) {
#if defined(__AVX2__)
      if constexpr (sizeof(T) == 4 && kRegisterBytes == 32)
        out |= uint32_t(_mm256_movemask_ps((__m256)r[i])) << (8 * i);
      else
#elif defined(__SSE2__)
      if constexpr (sizeof(T) == 4)
        out |= uint32_t(__builtin_ia32_movmskps((__attribute__((vector_size(16))) float)r[i]))
               << (4 * i);
      else
#endif
        for (int j = 0; j < kWidth; ++j) out |= (r[i][j] ? 1u : 0u) << (i * kWidth + j);
    }
    return out;
  }
  PYEXT_INLINE bool any() const { return bits() != 0; }
};

template <class T>
PYEXT_INLINE Mask<T> operator&(Mask<T> a, Mask<T> b) {
  for (int i = 0; i < Mask<T>::kCount; ++i) a.r[i] &= b.r[i];
  return a;
}
template <class T>
PYEXT_INLINE Mask<T> operator|(Mask<T> a, Mask<T> b) {
  for (int i = 0; i < Mask<T>::kCount; ++i) a.r[i] |= b.r[i];
  return a;
}
// a and not b
template <class T>
PYEXT_INLINE Mask<T> without(Mask<T> a, Mask<T> b) {
  for (int i = 0; i < Mask<T>::kCount; ++i) a.r[i] &= ~b.r[i];
  return a;
}

template <class T>
struct Lanes {
  typedef T Register __attribute__((vector_size(kRegisterBytes)));
  typedef T Unaligned __attribute__((vector_size(kRegisterBytes), aligned(alignof(T))));
  static constexpr int kWidth = kRegisterBytes / int(sizeof(T));
  static constexpr int kCount = kLanes / kWidth;
  using Scalar = T;
  using Bool = Mask<T>;
  Register r[kCount];

  Lanes() = default;
  PYEXT_INLINE Lanes(T x) {
    for (int i = 0; i < kCount; ++i) {
#if defined(__AVX512F__)  // of double; of the loop GCC makes a masked move for every lane
      r[i] = (Register)_mm512_set1_pd(x);
#else
      for (int j = 0; j < kWidth; ++j) r[i][j] = x;
#endif
    }
  }
  static PYEXT_INLINE Lanes load(const T* p) {
    Lanes out;
    for (int i = 0; i < kCount; ++i) out.r[i] = *(const Unaligned*)(p + i * kWidth);
    return out;
  }
  PYEXT_INLINE void store(T* p) const {
    for (int i = 0; i < kCount; ++i) *(Unaligned*)(p + i * kWidth) = r[i];
  }
  // Sum of all lanes, by halves: the same order on every instruction set.
  PYEXT_INLINE T sum() const {
    T x[kLanes];
    store(x);
    for (int half = kLanes / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) x[i] += x[i + half];
    return x[0];
  }
};

#define PYEXT_LANES_OPERATOR(op)                                          \
  template <class T>                                                      \
  PYEXT_INLINE Lanes<T> operator op(Lanes<T> a, Lanes<T> b) {             \
    for (int i = 0; i < Lanes<T>::kCount; ++i) a.r[i] = a.r[i] op b.r[i]; \
    return a;                                                             \
  }
PYEXT_LANES_OPERATOR(+)
PYEXT_LANES_OPERATOR(-)
PYEXT_LANES_OPERATOR(*)
PYEXT_LANES_OPERATOR(/)
#undef PYEXT_LANES_OPERATOR

template <class T>
PYEXT_INLINE Lanes<T> operator-(Lanes<T> a) {
  for (int i = 0; i < Lanes<T>::kCount; ++i) a.r[i] = -a.r[i];
  return a;
}

#define PYEXT_LANES_COMPARE(op)                                           \
  template <class T>                                                      \
  PYEXT_INLINE Mask<T> operator op(Lanes<T> a, Lanes<T> b) {              \
    Mask<T> m;                                                            \
    for (int i = 0; i < Lanes<T>::kCount; ++i) m.r[i] = a.r[i] op b.r[i]; \
    return m;                                                             \
  }
PYEXT_LANES_COMPARE(<)
PYEXT_LANES_COMPARE(<=)
PYEXT_LANES_COMPARE(>)
PYEXT_LANES_COMPARE(>=)
#undef PYEXT_LANES_COMPARE

template <class T>
PYEXT_INLINE Lanes<T> select(Mask<T> mask, Lanes<T> yes, Lanes<T> no) {
  for (int i = 0; i < Lanes<T>::kCount; ++i) no.r[i] = mask.r[i] ? yes.r[i] : no.r[i];
  return no;
}
template <class T>
PYEXT_INLINE Lanes<T> vmin(Lanes<T> a, Lanes<T> b) {
  return select(a < b, a, b);
}
template <class T>
PYEXT_INLINE Lanes<T> vmax(Lanes<T> a, Lanes<T> b) {
  return select(a > b, a, b);
}

// a * b + c: one rounding where the machine has it. Contraction is off elsewhere, so that forward
// and backward round alike.
template <class T>
PYEXT_INLINE Lanes<T> fma(Lanes<T> a, Lanes<T> b, Lanes<T> c) {
  for (int i = 0; i < Lanes<T>::kCount; ++i) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 8)
      c.r[i] = (typename Lanes<T>::Register)_mm512_fmadd_pd(a.r[i], b.r[i], c.r[i]);
#elif defined(__FMA__)
    if constexpr (sizeof(T) == 4)
      c.r[i] = (typename Lanes<T>::Register)_mm256_fmadd_ps(a.r[i], b.r[i], c.r[i]);
    else
      c.r[i] = (typename Lanes<T>::Register)_mm256_fmadd_pd(a.r[i], b.r[i], c.r[i]);
#else
    c.r[i] = a.r[i] * b.r[i] + c.r[i];
#endif
  }
  return c;
}

// c - a * b, rounded as fma.
template <class T>
PYEXT_INLINE Lanes<T> fnma(Lanes<T> a, Lanes<T> b, Lanes<T> c) {
  return fma(-a, b, c);
}

#if defined(__AVX512F__)

template <>
struct Mask<float> {
  __mmask16 m;
  static PYEXT_INLINE Mask none() { return {0}; }
  static PYEXT_INLINE Mask first(int count) { return {__mmask16((1u << count) - 1)}; }
  PYEXT_INLINE uint32_t bits() const { return m; }
  PYEXT_INLINE bool any() const { return m != 0; }
};
template <>
PYEXT_INLINE Mask<float> operator&(Mask<float> a, Mask<float> b) {
  return {__mmask16(a.m & b.m)};
}
template <>
PYEXT_INLINE Mask<float> operator|(Mask<float> a, Mask<float> b) {
  return {__mmask16(a.m | b.m)};
}
template <>
PYEXT_INLINE Mask<float> without(Mask<float> a, Mask<float> b) {
  return {__mmask16(a.m & ~b.m)};
}

template <>
struct Lanes<float> {
  using Scalar = float;
  using Bool = Mask<float>;
  __m512 r;
  Lanes() = default;
  PYEXT_INLINE Lanes(float x) : r(_mm512_set1_ps(x)) {}
  PYEXT_INLINE Lanes(__m512 x) : r(x) {}
  static PYEXT_INLINE Lanes load(const float* p) { return _mm512_loadu_ps(p); }
  PYEXT_INLINE void store(float* p) const { _mm512_storeu_ps(p, r); }
  PYEXT_INLINE float sum() const {
    const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(r), _mm512_extractf32x8_ps(r, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
  }
};

using F = Lanes<float>;
template <>
PYEXT_INLINE F operator+(F a, F b) {
  return _mm512_add_ps(a.r, b.r);
}
template <>
PYEXT_INLINE F operator-(F a, F b) {
  return _mm512_sub_ps(a.r, b.r);
}
template <>
PYEXT_INLINE F operator*(F a, F b) {
  return _mm512_mul_ps(a.r, b.r);
}
template <>
PYEXT_INLINE F operator/(F a, F b) {
  return _mm512_div_ps(a.r, b.r);
}
template <>
PYEXT_INLINE F operator-(F a) {
  return _mm512_xor_ps(a.r, _mm512_set1_ps(-0.0f));
}
template <>
PYEXT_INLINE Mask<float> operator<(F a, F b) {
  return {_mm512_cmp_ps_mask(a.r, b.r, _CMP_LT_OQ)};
}
template <>
PYEXT_INLINE Mask<float> operator<=(F a, F b) {
  return {_mm512_cmp_ps_mask(a.r, b.r, _CMP_LE_OQ)};
}
template <>
PYEXT_INLINE Mask<float> operator>(F a, F b) {
  return {_mm512_cmp_ps_mask(a.r, b.r, _CMP_GT_OQ)};
}
template <>
PYEXT_INLINE Mask<float> operator>=(F a, F b) {
  return {_mm512_cmp_ps_mask(a.r, b.r, _CMP_GE_OQ)};
}
template <>
PYEXT_INLINE F select(Mask<float> mask, F yes, F no) {
  return _mm512_mask_mov_ps(no.r, mask.m, yes.r);
}
template <>
PYEXT_INLINE F vmin(F a, F b) {
  return _mm512_min_ps(a.r, b.r);
}
template <>
PYEXT_INLINE F vmax(F a, F b) {
  return _mm512_max_ps(a.r, b.r);
}
template <>
PYEXT_INLINE F fma(F a, F b, F c) {
  return _mm512_fmadd_ps(a.r, b.r, c.r);
}
template <>
PYEXT_INLINE F fnma(F a, F b, F c) {
  return _mm512_fnmadd_ps(a.r, b.r, c.r);
}

#endif  // __AVX512F__

// Lane by lane through the C library: for what is computed once per Gaussian.
template <class T, class Function>
PYEXT_INLINE Lanes<T> each(Lanes<T> a, Function function) {
  T x[kLanes];
  a.store(x);
  for (int i = 0; i < kLanes; ++i) x[i] = function(x[i]);
  return Lanes<T>::load(x);
}
template <class T>
PYEXT_INLINE Lanes<T> vsqrt(Lanes<T> a) {
  return each(a, [](T x) { return pyext::vsqrt(x); });
}
template <class T>
PYEXT_INLINE Lanes<T> vceil(Lanes<T> a) {
  return each(a, [](T x) { return pyext::vceil(x); });
}
template <class T>
PYEXT_INLINE Lanes<T> vfloor(Lanes<T> a) {
  return each(a, [](T x) { return pyext::vfloor(x); });
}
template <class T>
PYEXT_INLINE Lanes<T> vlog(Lanes<T> a) {
  return each(a, [](T x) { return pyext::vlog(x); });
}
#if defined(__AVX512F__)
template <>
PYEXT_INLINE F vsqrt(F a) {
  return _mm512_sqrt_ps(a.r);
}
template <>
PYEXT_INLINE F vceil(F a) {
  return _mm512_roundscale_ps(a.r, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
}
template <>
PYEXT_INLINE F vfloor(F a) {
  return _mm512_roundscale_ps(a.r, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
#endif

// Integers that ride in floating-point lanes as bits: for select, not for arithmetic.
template <class T>
PYEXT_INLINE T integer_bits(int64_t value) {
  const typename IntOf<T>::type narrow = typename IntOf<T>::type(value);
  T bits;
  memcpy(&bits, &narrow, sizeof bits);
  return bits;
}
template <class T>
PYEXT_INLINE void store_integers(Lanes<T> a, int32_t* out, int count) {
  T x[kLanes];
  typename IntOf<T>::type values[kLanes];
  a.store(x);
  memcpy(values, x, sizeof values);
  for (int i = 0; i < count; ++i) out[i] = int32_t(values[i]);
}

template <class T>
PYEXT_INLINE Lanes<T> iota() {
  T x[kLanes];
  for (int i = 0; i < kLanes; ++i) x[i] = T(i);
  return Lanes<T>::load(x);
}

// Every stride-th element, lane by lane; lanes from `count` on repeat the last one.
template <class T>
PYEXT_INLINE Lanes<T> load_strided(const T* p, int64_t stride, int count) {
  T x[kLanes];
  for (int i = 0; i < kLanes; ++i) x[i] = p[(i < count ? i : count - 1) * stride];
  return Lanes<T>::load(x);
}
template <class T>
PYEXT_INLINE void store_strided(Lanes<T> a, T* p, int64_t stride, int count) {
  T x[kLanes];
  a.store(x);
  for (int i = 0; i < count; ++i) p[i * stride] = x[i];
}

}  // namespace pyext::PYEXT_ISA
