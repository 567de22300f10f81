// Windows of a map: what sixteen channels have in sixteen columns becomes what each window has in
// sixteen channels, which lie side by side in tokens.
#pragma once

#include "core/simd_half.h"
#include "core/simd_rows.h"

namespace pyext::PYEXT_ISA {

// values(channel) gives sixteen columns of a channel, from column `at` of a strip on. Calls
// add(window, channels) for each column, whose window is r columns wide.
template <class V, class Values, class Add>
PYEXT_INLINE void by_window(int64_t at, int columns, int channels, int64_t r, Values values,
                            Add add) {
  typename V::Scalar tile[kLanes * kLanes];
  for (int c = 0; c < channels; ++c) values(c).store(tile + c * kLanes);
  V turned[kLanes];
  load_block(tile, kLanes, columns, channels, turned);
  int64_t window = at / r, inside = at % r;
  for (int j = 0; j < columns; ++j) {
    add(window, turned[j]);
    if (++inside == r) inside = 0, ++window;
  }
}

}  // namespace pyext::PYEXT_ISA
