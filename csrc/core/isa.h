// Which build of the CPU kernels runs: one per instruction set, picked at load time.
#pragma once

#include <string>
#include <vector>

namespace pyext {

// The instruction sets this build has and this machine supports, best last.
std::vector<std::string> isas();

// The one in use. At load: the best, or what the environment variable PYEXT_ISA names.
std::string isa();

// Throws when `name` is unknown, not built, or not supported here.
void set_isa(const std::string& name);

// Loads a shared library of kernels under a name of its own, for set_isa: test equipment that
// stands in for the CPU (the CUDA emulator).
void load_backend(const std::string& name, const std::string& path);

// A symbol of the library loaded under the name in use; null when that is a built-in set.
void* loaded_symbol(const char* symbol);

}  // namespace pyext
