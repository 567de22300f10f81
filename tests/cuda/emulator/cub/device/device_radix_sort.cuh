// Stands in for CUB's header of the same name.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <numeric>
#include <vector>

namespace cub {

struct DeviceRadixSort {
  template <class Key, class Value>
  static cudaError_t SortPairs(void* scratch, size_t& bytes, const Key* keys, Key* sorted_keys,
                               const Value* values, Value* sorted_values, int64_t count,
                               int begin_bit, int end_bit, cudaStream_t) {
    bytes = 1;
    if (!scratch) return cudaSuccess;
    const int bits = end_bit - begin_bit;
    const Key mask = bits >= int(8 * sizeof(Key)) ? ~Key(0) : (Key(1) << bits) - 1;
    std::vector<int64_t> order(static_cast<size_t>(count));
    std::iota(order.begin(), order.end(), int64_t(0));
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return (keys[a] >> begin_bit & mask) < (keys[b] >> begin_bit & mask);
    });
    for (int64_t i = 0; i < count; ++i) {
      sorted_keys[i] = keys[order[size_t(i)]];
      sorted_values[i] = values[order[size_t(i)]];
    }
    return cudaSuccess;
  }
};

}  // namespace cub
