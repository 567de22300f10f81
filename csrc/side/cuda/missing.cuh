// Kernels that the CUDA backend does not have.
#pragma once

#include <stdexcept>

#include "side/kernels.h"

namespace pyext::side::cuda {

#define PYEXT_SIDE_MISSING(name, Args)                                          \
  template <class S>                                                            \
  void name(const Args<S>&, const Context&) {                                   \
    throw std::runtime_error("side: the kernel " #name " has no CUDA version"); \
  }
PYEXT_SIDE_MISSING(activate, ActivateArgs)
PYEXT_SIDE_MISSING(activate_backward, ActivateBackwardArgs)
PYEXT_SIDE_MISSING(project, ProjectArgs)
PYEXT_SIDE_MISSING(project_backward, ProjectBackwardArgs)
PYEXT_SIDE_MISSING(span_sums, SpanSumsArgs)
PYEXT_SIDE_MISSING(join_spans, JoinSpansArgs)
PYEXT_SIDE_MISSING(guided_pool, GuidedPoolArgs)
PYEXT_SIDE_MISSING(guided_pool_backward, GuidedPoolBackwardArgs)
#undef PYEXT_SIDE_MISSING

}  // namespace pyext::side::cuda
