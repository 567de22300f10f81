// The CPU backend of `solve`, compiled once per instruction set (PYEXT_ISA names it).
#include "solve/cpu/factor.h"
#include "solve/cpu/gram.h"
#include "solve/cpu/rows.h"
#include "solve/cpu/substitute.h"
#include "solve/cpu/triangles.h"

namespace pyext::PYEXT_ISA {

#define PYEXT_SOLVE_ENTRY(name, Args) &name,
extern const solve::Backend solve_backend;
const solve::Backend solve_backend = {PYEXT_SOLVE_KERNELS(PYEXT_SOLVE_ENTRY)};
#undef PYEXT_SOLVE_ENTRY

}  // namespace pyext::PYEXT_ISA
