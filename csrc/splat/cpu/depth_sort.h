// The Gaussians of one image front to back: a stable radix sort, shared by threads.
#pragma once

#include <cstring>
#include <type_traits>

#include "core/parallel.h"
#include "core/simd.h"
#include "splat/kernels.h"

namespace pyext::PYEXT_ISA {

using namespace pyext::splat;

// Writes order [N] of an image: visible Gaussians front to back, then the others by index. Threads
// take parts of the list; what a part moves goes behind what earlier parts move to the same place,
// so the order does not depend on their number.
template <class T>
class DepthSort {
 public:
  static int64_t room(int64_t gaussians, int64_t parts) {
    return 2 * gaussians * int64_t(sizeof(Key)) + parts * kBuckets * int64_t(sizeof(int64_t));
  }

  // `room` bytes are for this sort alone.
  DepthSort(const BinArgs<T>& args, int64_t image, int64_t parts, char* room)
      : parts_(parts), gaussians_(args.gaussians), base_(image * args.gaussians) {
    radii_ = args.radii + 2 * base_;
    depths_ = args.depths + base_;
    order_ = args.order + base_;
    places_ = reinterpret_cast<int64_t*>(room);
    keys_ = reinterpret_cast<Key*>(places_ + parts * kBuckets);
    spare_ = keys_ + gaussians_;
  }

  void run() {
    split();
    for (int shift = 0; shift < int(8 * sizeof(T)); shift += kBits) {
      move_by_bits(shift);
      Key* swap = keys_;
      keys_ = spare_;
      spare_ = swap;
    }
    in_parts(visible_, [&](int64_t, int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) order_[i] = keys_[i].index;
    });
  }

 private:
  static constexpr int kBits = 11;
  static constexpr int64_t kBuckets = int64_t(1) << kBits;

  // Positive floats order like their bits.
  struct Key {
    std::make_unsigned_t<typename IntOf<T>::type> bits;
    int32_t index;
  };

  template <class Body>
  void in_parts(int64_t count, Body body) const {
    auto task = [&](int64_t part, int) {
      body(part, count * part / parts_, count * (part + 1) / parts_);
    };
    parallel_tasks(parts_, task);
  }

  bool is_visible(int64_t i) const { return radii_[2 * i] > 0 && radii_[2 * i + 1] > 0; }

  // Keys of the visible ones, and the others to the end of the order.
  void split() {
    in_parts(gaussians_, [&](int64_t part, int64_t first, int64_t last) {
      int64_t count = 0;
      for (int64_t i = first; i < last; ++i) count += is_visible(i);
      places_[part] = count;
    });
    visible_ = 0;
    for (int64_t part = 0; part < parts_; ++part) {
      const int64_t count = places_[part];
      places_[part] = visible_;
      visible_ += count;
    }
    in_parts(gaussians_, [&](int64_t part, int64_t first, int64_t last) {
      int64_t seen = places_[part], hidden = visible_ + first - seen;
      for (int64_t i = first; i < last; ++i) {
        if (is_visible(i)) {
          memcpy(&keys_[seen].bits, depths_ + i, sizeof(T));
          keys_[seen++].index = int32_t(base_ + i);
        } else {
          order_[hidden++] = int32_t(base_ + i);
        }
      }
    });
  }

  // From keys_ to spare_, by kBits of the key.
  void move_by_bits(int shift) {
    const auto bucket = [&](int64_t i) { return keys_[i].bits >> shift & (kBuckets - 1); };
    in_parts(visible_, [&](int64_t part, int64_t first, int64_t last) {
      int64_t* counts = places_ + part * kBuckets;
      memset(counts, 0, size_t(kBuckets) * sizeof(int64_t));
      for (int64_t i = first; i < last; ++i) ++counts[bucket(i)];
    });
    int64_t total = 0;
    for (int64_t b = 0; b < kBuckets; ++b)
      for (int64_t part = 0; part < parts_; ++part) {
        int64_t& place = places_[part * kBuckets + b];
        const int64_t count = place;
        place = total;
        total += count;
      }
    in_parts(visible_, [&](int64_t part, int64_t first, int64_t last) {
      int64_t* place = places_ + part * kBuckets;
      for (int64_t i = first; i < last; ++i) spare_[place[bucket(i)]++] = keys_[i];
    });
  }

  int64_t parts_, gaussians_, base_, visible_ = 0;
  const int32_t* radii_;  // [N, 2]
  const T* depths_;       // [N]
  int32_t* order_;        // [N]
  int64_t* places_;       // [parts, buckets]: counts, then where the next one goes
  Key *keys_, *spare_;    // [N]
};

}  // namespace pyext::PYEXT_ISA
