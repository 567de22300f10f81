// The CPU backend of `splat`, compiled once per instruction set (PYEXT_ISA names it).
#include "splat/cpu/bin.h"
#include "splat/cpu/cells.h"
#include "splat/cpu/composite.h"
#include "splat/cpu/composite_backward.h"
#include "splat/cpu/contributors.h"
#include "splat/cpu/project.h"
#include "splat/cpu/sh.h"
#include "splat/cpu/unproject.h"

namespace pyext::PYEXT_ISA {

template <class T>
constexpr splat::Kernels<T> kKernels = {
    project<T>,   project_backward<T>,   sh<T>,        sh_backward<T>, bin<T>,
    composite<T>, composite_backward<T>, unproject<T>, cells<T>,       contributors<T>};

extern const splat::Backend splat_backend;
const splat::Backend splat_backend = {&kKernels<float>, &kKernels<double>};

}  // namespace pyext::PYEXT_ISA
