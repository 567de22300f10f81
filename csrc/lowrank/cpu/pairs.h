// `project` for rows and factors of bfloat16, by the instruction that multiplies two neighbours of
// each and adds both products to a float: twice as many operations as with widened values. It takes
// numbers below the smallest normal one for zeros.
#pragma once

#include "lowrank/cpu/products.h"

#if defined(__AVX512BF16__)

namespace pyext::PYEXT_ISA {

// Rows [count][width] whose values are all of bfloat16 as panels of sixteen columns: two
// neighbours' bits in 32, [ceil(width / 2)][16] each.
inline void pack_pairs(const float* const* rows, int64_t count, int64_t width, uint32_t* panels) {
  const int64_t pairs = (width + 1) / 2;
  for (int64_t b = 0; b < blocks_of(count); ++b) {
    const float* own[kLanes];
    for (int i = 0; i < kLanes; ++i)
      own[i] = b * kLanes + i < count ? rows[b * kLanes + i] : nullptr;
    uint32_t* panel = panels + b * pairs * kLanes;
    for (int64_t k = 0; k < width; k += kLanes) {
      const int inside = width - k < kLanes ? int(width - k) : kLanes;
      F columns[kLanes];
      load_columns(own, k, inside, columns);
      for (int i = 0; i < inside; i += 2) {
        const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(columns[i].r), 16);
        const __m512i high = _mm512_castps_si512(columns[i + 1].r);
        _mm512_storeu_si512(panel + (k + i) / 2 * kLanes,
                            _mm512_mask_mov_epi16(low, 0xaaaaaaaa, high));
      }
    }
  }
}

PYEXT_INLINE uint32_t pair_at(const BFloat16* p) {
  uint32_t pair;
  memcpy(&pair, p, sizeof pair);
  return pair;
}

PYEXT_INLINE F add_pairs(F sums, uint32_t pair, const uint32_t* panel) {
  return _mm512_dpbf16_ps(sums.r, (__m512bh)_mm512_loadu_si512(panel),
                          (__m512bh)_mm512_set1_epi32(int(pair)));
}
PYEXT_INLINE EightLanes add_pairs(EightLanes sums, uint32_t pair, const uint32_t* panel) {
  return _mm256_dpbf16_ps(sums.r, (__m256bh)_mm256_loadu_si256((const __m256i*)panel),
                          (__m256bh)_mm256_set1_epi32(int(pair)));
}

// As `multiply_panel`, of a panel of pairs; a last value without a neighbour has zero beside it.
template <class V, int R>
PYEXT_INLINE void multiply_pairs(const BFloat16* const* x, int64_t depth, const uint32_t* panel,
                                 float* sums, int64_t sums_stride, bool first, int64_t ahead) {
  constexpr int kPairs = 8;
  V acc[R];
  PYEXT_UNROLL
  for (int i = 0; i < R; ++i) acc[i] = first ? V(0.0f) : V::load(sums + i * sums_stride);
  int64_t k = 0;
  for (; k + 2 * kPairs <= depth; k += 2 * kPairs) {
    PYEXT_UNROLL
    for (int i = 0; i < R; ++i) {
      const BFloat16* row = x[i] + k;
      if (k % (4 * kPairs) == 0) prefetch(row, ahead);  // once a cache line
      PYEXT_UNROLL
      for (int j = 0; j < kPairs; ++j)
        acc[i] = add_pairs(acc[i], pair_at(row + 2 * j), panel + (k / 2 + j) * kLanes);
    }
  }
  for (; k < depth; k += 2)
    for (int i = 0; i < R; ++i) {
      const uint32_t pair = k + 1 < depth ? pair_at(x[i] + k) : x[i][k].bits;
      acc[i] = add_pairs(acc[i], pair, panel + k / 2 * kLanes);
    }
  PYEXT_UNROLL
  for (int i = 0; i < R; ++i) acc[i].store(sums + i * sums_stride);
}

// As `project`, from panels of pairs.
inline void project_pairs(int count, const BFloat16* const* x, int64_t width,
                          const uint32_t* panels, int64_t columns, float* out, int64_t stride,
                          int64_t ahead) {
  static_assert(kDepth % 2 == 0);
  for_row_groups<float>(count, [&](int first, auto rows) {
    constexpr int R = decltype(rows)::value;
    float* sums = out + first * stride;
    for (int64_t at = 0; at < width; at += kDepth) {
      const int64_t depth = width - at < kDepth ? width - at : kDepth;
      const BFloat16* own[R];
      for (int i = 0; i < R; ++i) own[i] = x[first + i] + at;
      for (int64_t b = 0; b < columns; b += kLanes) {
        const uint32_t* panel = panels + (b * ((width + 1) / 2) + at / 2 * kLanes);
        if (columns - b <= kLanes / 2)
          multiply_pairs<EightLanes, R>(own, depth, panel, sums + b, stride, at == 0, ahead);
        else
          multiply_pairs<F, R>(own, depth, panel, sums + b, stride, at == 0, ahead);
      }
    }
  });
}

}  // namespace pyext::PYEXT_ISA

#endif
