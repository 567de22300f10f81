// Activations of whole arrays.
#pragma once

#include "core/simd_half.h"
#include "core/simd_math.h"
#include "side/activation.h"
#include "side/kernels.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::side;

template <class S>
void activate(const ActivateArgs<S>& args, const Context&) {
  with_activation(args.act, [&](auto act) {
    for_each_lanes(args.count, [&](int64_t i, auto lanes) {
      const WideLanes<S> x = load_wide(args.x + i, lanes);
      store_narrow<Product<S>>(side::activate<act.value>(x), args.y + i, lanes);
    });
  });
}

template <class S>
void activate_backward(const ActivateBackwardArgs<S>& args, const Context&) {
  with_activation(args.act, [&](auto act) {
    for_each_lanes(args.count, [&](int64_t i, auto lanes) {
      const WideLanes<S> x = load_wide(args.x + i, lanes), g = load_wide(args.g_y + i, lanes);
      store_narrow<S>(side::activate_backward<act.value>(x, g), args.g_x + i, lanes);
    });
  });
}

}  // namespace pyext::PYEXT_ISA
