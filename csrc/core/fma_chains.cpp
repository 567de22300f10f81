// Independent chains of fused multiply-adds, enough of them to hide the latency of one. Compiled
// once per instruction set; fma_peak.cpp times it.
#include "core/simd.h"

namespace pyext::PYEXT_ISA {

// Runs `iterations` rounds; returns the floating-point operations done.
double fma_chains(int64_t iterations) {
  constexpr int kRegisters = 12;
  constexpr int kChains = kRegisters * kRegisterBytes / (kLanes * int(sizeof(float)));
  using V = Lanes<float>;
  V chain[kChains];
  for (int i = 0; i < kChains; ++i) chain[i] = V(float(i));
  const V a(0.999f), b(0.001f);
  for (int64_t n = 0; n < iterations; ++n)
    for (int i = 0; i < kChains; ++i) chain[i] = fma(chain[i], a, b);
  volatile float sink[kLanes];  // the compiler must assume that the result is read
  for (int i = 0; i < kChains; ++i) {
    float x[kLanes];
    chain[i].store(x);
    for (int j = 0; j < kLanes; ++j) sink[j] = x[j];
  }
  (void)sink;
  return 2.0 * kLanes * kChains * double(iterations);
}

}  // namespace pyext::PYEXT_ISA
