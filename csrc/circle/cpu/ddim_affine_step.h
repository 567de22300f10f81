// A DDIM step with guidance: one pass over what the network said and where the sample is.
#pragma once

#include "circle/kernels.h"
#include "core/parallel.h"
#include "core/simd_stream.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::circle;

constexpr int64_t kStepChunk = 16384;  // elements of a sample that one task takes

template <class S>
void step_elements(const DdimAffineStepArgs<S>& args, int64_t sample, int64_t begin, int64_t n,
                   bool stream) {
  using V = WideLanes<S>;
  using T = Wide<S>;
  const int64_t at = sample * args.width + begin;
  const double* coef = args.coef + sample * args.coef_stride;
  const V k0{T(coef[0])}, k1{T(coef[1])}, guidance{T(args.guidance)};
  const auto predicted = [&](int64_t i, auto lanes) {
    const V eps = load_wide(args.eps + at + i, lanes);
    if (!args.unconditional) return eps;
    const V from = load_wide(args.unconditional + at + i, lanes);
    return fma(guidance, eps - from, from);
  };
  const auto write = [&](auto value) {
    for (int64_t c = 0; c < args.copies; ++c)
      write_lanes<S>(args.y + c * args.samples * args.width + at, n, stream, value);
  };
  if (args.clip > 0) {
    const V k2{T(coef[2])}, k3{T(coef[3])}, k4{T(coef[4])}, high{T(args.clip)}, low{-T(args.clip)};
    write([&](int64_t i, auto lanes) {
      const V x = load_wide(args.x + at + i, lanes), e = predicted(i, lanes);
      const V clean = vmax(vmin(fma(k1, e, k0 * x), high), low);
      return fma(k2, clean, fma(k4, e, k3 * x));
    });
  } else {
    write([&](int64_t i, auto lanes) {
      return fma(k1, predicted(i, lanes), k0 * load_wide(args.x + at + i, lanes));
    });
  }
  if (stream) end_of_stream();
}

template <class S>
void ddim_affine_step(const DdimAffineStepArgs<S>& args, const Context&) {
  const int64_t chunks = (args.width + kStepChunk - 1) / kStepChunk;
  const int64_t values = args.copies * args.samples * args.width;
  const bool stream = values * int64_t(sizeof(S)) >= kStreamBytes;
  auto task = [&](int64_t index, int) {
    const int64_t begin = index % chunks * kStepChunk, left = args.width - begin;
    step_elements(args, index / chunks, begin, left < kStepChunk ? left : kStepChunk, stream);
  };
  parallel_tasks(args.samples * chunks, task);
}

}  // namespace pyext::PYEXT_ISA
