// The CPU backend of `circle`, compiled once per instruction set (PYEXT_ISA names it).
#include "circle/cpu/ddim_affine_step.h"
#include "circle/cpu/interp.h"
#include "circle/cpu/interp_backward.h"

namespace pyext::PYEXT_ISA {

#define PYEXT_CIRCLE_ENTRY(name, Args) &name<S>,
template <class S>
constexpr circle::Kernels<S> kCircleKernels = {PYEXT_CIRCLE_KERNELS(PYEXT_CIRCLE_ENTRY)};
#undef PYEXT_CIRCLE_ENTRY

extern const circle::Backend circle_backend;
const circle::Backend circle_backend = {&kCircleKernels<float>, &kCircleKernels<BFloat16>,
                                        &kCircleKernels<Float16>, &kCircleKernels<double>};

}  // namespace pyext::PYEXT_ISA
