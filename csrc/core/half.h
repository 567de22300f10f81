// The 16-bit floating-point types as they lie in memory. Arithmetic is done in float: `widen` and
// `narrow` go between, rounding to nearest, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/macros.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace pyext {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// The type that values of storage type S are computed in.
template <class S>
struct WideOf {
  using type = float;
};
template <>
struct WideOf<double> {
  using type = double;
};
template <class S>
using Wide = typename WideOf<S>::type;

PYEXT_HD uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
PYEXT_HD float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

PYEXT_HD float widen(float x) { return x; }
PYEXT_HD double widen(double x) { return x; }
PYEXT_HD float widen(BFloat16 x) { return float_of(uint32_t(x.bits) << 16); }
PYEXT_HD float widen(Float16 x) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(x.bits));
#else
  // The exponent moves by a product, which normalises small numbers too; 31 stays the largest.
  const uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13;
  const uint32_t infinite = magnitude >= (31u << 23) ? 0x7f800000u : 0u;
  const uint32_t scaled = float_bits(float_of(magnitude) * 0x1p112f);
  return float_of(scaled | infinite | uint32_t(x.bits & 0x8000) << 16);
#endif
}

template <class S>
PYEXT_HD S narrow(Wide<S> x) {
  return x;
}
template <>
PYEXT_HD BFloat16 narrow<BFloat16>(float x) {
#if defined(__CUDA_ARCH__)
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#else
  const uint32_t bits = float_bits(x);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const bool nan = (bits & 0x7fffffff) > 0x7f800000;
  return {uint16_t(nan ? bits >> 16 | 0x40 : rounded)};
#endif
}
template <>
PYEXT_HD Float16 narrow<Float16>(float x) {
#if defined(__CUDA_ARCH__)
  return {__half_as_ushort(__float2half_rn(x))};
#else
  const uint32_t bits = float_bits(x), magnitude = bits & 0x7fffffff;
  // Below 2^-14 the sum with 1/2 rounds at the place of the last bit.
  const uint32_t small = float_bits(float_of(magnitude) + 0.5f) - float_bits(0.5f);
  const uint32_t normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  uint32_t half = magnitude < (113u << 23) ? small : normal;
  half = magnitude >= 0x477ff000 ? 0x7c00 : half;  // 65520, half way beyond the largest
  half = magnitude > 0x7f800000 ? 0x7e00 : half;
  return {uint16_t(half | (bits >> 16 & 0x8000))};
#endif
}

}  // namespace pyext
