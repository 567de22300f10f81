// The CPU backend of `lowrank`, compiled once per instruction set (PYEXT_ISA names it).
#include "lowrank/cpu/gate.h"
#include "lowrank/cpu/lora.h"
#include "lowrank/cpu/mix.h"
#include "lowrank/cpu/mix_backward.h"
#include "lowrank/cpu/orthonormalize.h"
#include "lowrank/cpu/rows.h"

namespace pyext::PYEXT_ISA {

#define PYEXT_LOWRANK_ENTRY(name, Args) &name<S>,
template <class S>
constexpr lowrank::Kernels<S> kLowrankKernels = {PYEXT_LOWRANK_KERNELS(PYEXT_LOWRANK_ENTRY)};
#undef PYEXT_LOWRANK_ENTRY

extern const lowrank::Backend lowrank_backend;
const lowrank::Backend lowrank_backend = {&kLowrankKernels<float>, &kLowrankKernels<BFloat16>,
                                          &kLowrankKernels<Float16>, &kLowrankKernels<double>};

}  // namespace pyext::PYEXT_ISA
