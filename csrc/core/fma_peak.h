#pragma once

namespace pyext {

// Floating-point operations a second that torch's intra-op threads together reach in fused
// multiply-adds at the instruction set in use; measured for about `seconds`.
double fma_peak(double seconds);

}  // namespace pyext
