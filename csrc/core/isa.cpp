#include "core/isa.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <sstream>
#include <stdexcept>

namespace pyext {
namespace {

struct State {
  std::vector<std::string> names;  // usable here, best last
  std::map<std::string, void*> libraries;
  std::string current;
};

std::vector<std::string> supported() {
  std::vector<std::string> names{"baseline"};
#if defined(PYEXT_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx2) names.emplace_back("avx2");
  if (avx512) names.emplace_back("avx512");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) names.emplace_back("avx512_bf16");
#endif
  return names;
}

std::string choose(const State& state, const std::string& name) {
  if (std::find(state.names.begin(), state.names.end(), name) != state.names.end()) return name;
  std::ostringstream message;
  message << "instruction set '" << name << "' cannot be used: this build on this machine has";
  for (const std::string& known : state.names) message << " '" << known << "'";
  throw std::invalid_argument(message.str());
}

State start() {
  State state;
  state.names = supported();
  const char* forced = std::getenv("PYEXT_ISA");
  try {
    state.current = forced && *forced ? choose(state, forced) : state.names.back();
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(std::string("environment variable PYEXT_ISA: ") + error.what());
  }
  return state;
}

State& state() {
  static State instance = start();
  return instance;
}

}  // namespace

std::vector<std::string> isas() { return state().names; }

std::string isa() { return state().current; }

void set_isa(const std::string& name) { state().current = choose(state(), name); }

void load_backend(const std::string& name, const std::string& path) {
  if (std::find(state().names.begin(), state().names.end(), name) != state().names.end()) return;
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) throw std::runtime_error(std::string("cannot load backend: ") + dlerror());
  state().libraries[name] = library;
  state().names.insert(state().names.begin(), name);
}

void* loaded_symbol(const char* symbol) {
  const auto found = state().libraries.find(state().current);
  if (found == state().libraries.end()) return nullptr;
  void* address = dlsym(found->second, symbol);
  if (!address) throw std::runtime_error("backend '" + found->first + "' has no symbol " + symbol);
  return address;
}

}  // namespace pyext
