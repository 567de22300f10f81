// Every translation unit of CPU kernels is compiled once per instruction set with PYEXT_ISA set to
// its name. All it defines lives in a namespace of that name, and it includes no torch header and
// no standard container: an inline function compiled for AVX-512 under a shared name could be the
// copy the linker keeps for everybody.
#pragma once

#ifndef PYEXT_ISA
#error "compile CPU kernels through CMake, which sets PYEXT_ISA"
#endif
