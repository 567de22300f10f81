// The CPU backend of `side`, compiled once per instruction set (PYEXT_ISA names it).
#include "side/cpu/activate.h"
#include "side/cpu/antired.h"
#include "side/cpu/attend.h"
#include "side/cpu/confidence.h"
#include "side/cpu/gated.h"
#include "side/cpu/guided_pool.h"
#include "side/cpu/maxavg_pool.h"
#include "side/cpu/project.h"
#include "side/cpu/spans.h"
#include "side/cpu/up.h"

namespace pyext::PYEXT_ISA {

#define PYEXT_SIDE_ENTRY(name, Args) &name<S>,
template <class S>
constexpr side::Kernels<S> kSideKernels = {PYEXT_SIDE_KERNELS(PYEXT_SIDE_ENTRY)};
#undef PYEXT_SIDE_ENTRY

extern const side::Backend side_backend;
const side::Backend side_backend = {&kSideKernels<float>, &kSideKernels<BFloat16>,
                                    &kSideKernels<Float16>, &kSideKernels<double>};

}  // namespace pyext::PYEXT_ISA
