// Which elements a dropout keeps: a hash of their index and a seed.
#pragma once

#include "side/kernels.h"

namespace pyext::side {

// Bijection of 32-bit integers (Ellis 2018, "lowbias32").
PYEXT_HD uint32_t hash32(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ x >> 16;
}

// Of all indices with these upper 32 bits.
PYEXT_HD uint32_t dropout_stream(const Dropout& dropout, uint32_t upper) {
  return hash32(dropout.key[0] ^ hash32(dropout.key[1] ^ hash32(upper)));
}

PYEXT_HD bool kept(const Dropout& dropout, uint32_t stream, uint32_t lower) {
  return hash32(lower ^ stream) >= dropout.dropped;
}

}  // namespace pyext::side
