// Stores that go past the caches: for results larger than they are, which nobody reads back soon.
// An ordinary store first fetches the line that it is about to overwrite, half as much traffic
// again.
#pragma once

#include "core/simd_half.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace pyext::PYEXT_ISA {

constexpr int64_t kStreamBytes = int64_t(16) << 20;  // a result of this size outgrows the caches
constexpr int kStreamAlign = kRegisterBytes;

// Sixteen values to memory that is aligned to kStreamAlign, or to all that they take if that is
// less.
template <class S>
PYEXT_INLINE void stream_narrow(WideLanes<S> a, S* p) {
#if defined(__SSE2__)
  alignas(64) S x[kLanes];
  store_narrow<S>(a, x);
  const char* from = reinterpret_cast<const char*>(x);
  char* to = reinterpret_cast<char*>(p);
  constexpr int kBytes = kLanes * int(sizeof(S));
#if defined(__AVX512F__)
  if constexpr (kBytes >= 64) {
    for (int i = 0; i < kBytes; i += 64)
      _mm512_stream_si512((__m512i*)(to + i), _mm512_load_si512(from + i));
    return;
  }
#endif
#if defined(__AVX2__)
  for (int i = 0; i < kBytes; i += 32)
    _mm256_stream_si256((__m256i*)(to + i), _mm256_load_si256((const __m256i*)(from + i)));
#else
  for (int i = 0; i < kBytes; i += 16)
    _mm_stream_si128((__m128i*)(to + i), _mm_load_si128((const __m128i*)(from + i)));
#endif
#else
  store_narrow<S>(a, p);
#endif
}

// Makes streamed stores visible before whatever the thread stores next.
PYEXT_INLINE void end_of_stream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Stores value(i, lanes) for i from 0 to n at out + i, sixteen at a time.
template <class S, class Value>
PYEXT_INLINE void write_lanes(S* out, int64_t n, bool stream, Value value) {
  const auto store = [&](int64_t i, auto lanes) {
    store_narrow<S>(value(i, lanes), out + i, lanes);
  };
  if (!stream) return for_each_lanes(n, store);
  const auto beyond = int64_t(reinterpret_cast<uintptr_t>(out) % kStreamAlign / sizeof(S));
  int64_t i = beyond ? kStreamAlign / int64_t(sizeof(S)) - beyond : 0;
  i = i < n ? i : n;
  for (int64_t j = 0; j < i; j += kLanes)
    store(j, FirstLanes(int(i - j < kLanes ? i - j : kLanes)));
  for (; i + kLanes <= n; i += kLanes) stream_narrow<S>(value(i, AllLanes()), out + i);
  if (i < n) store(i, FirstLanes(int(n - i)));
}

}  // namespace pyext::PYEXT_ISA
