// Which backend a tensor's kernels come from, and the checks all bindings share.
#include "splat/bind/bind.h"

#include <algorithm>

PYEXT_DEFINE_BACKEND_FOR(splat)

namespace pyext::splat {

int32_t image_side(int64_t size, const char* name) {
  TORCH_CHECK_VALUE(size >= 1 && size <= (1 << 20), name, ": expected 1 to 1048576 pixels, got ",
                    size);
  return int32_t(size);
}

int64_t tiles_of(int64_t images, int64_t width, int64_t height) {
  return images * ((width + kTile - 1) / kTile) * ((height + kTile - 1) / kTile);
}

void check_indices(const Tensor& list, const char* name, int64_t limit) {
  if (!list.is_cpu()) return;
  const auto* begin = data<int32_t>(list);
  const auto* end = begin + list.numel();
  // One unsigned comparison, without an early exit: this loop is vectorised.
  const auto bound = uint32_t(limit);
  auto outside = [bound](int32_t x) { return uint32_t(x) >= bound; };
  uint32_t wrong = 0;
  for (const auto* x = begin; x != end; ++x) wrong |= uint32_t(outside(*x));
  if (!wrong) return;
  TORCH_CHECK_VALUE(false, name, ": expected indices from 0 to below ", limit, ", got ",
                    *std::find_if(begin, end, outside));
}

void check_offsets(const Tensor& list, const char* name, int64_t entries) {
  if (!list.is_cpu()) return;
  const auto* begin = data<int64_t>(list);
  const int64_t last = list.numel() - 1;
  bool falls = begin[0] != 0 || begin[last] != entries;
  for (int64_t i = 0; i < last; ++i) falls |= begin[i] > begin[i + 1];
  TORCH_CHECK_VALUE(!falls, name, ": expected offsets that rise from 0 to ", entries,
                    ", the number of entries, got ", begin[0], " to ", begin[last],
                    std::is_sorted(begin, begin + last + 1) ? "" : ", with falls in between");
}

void check_flat_ids(const char* name, int64_t images, int64_t gaussians) {
  TORCH_CHECK_VALUE(images * gaussians < (int64_t(1) << 31), name,
                    ": expected fewer than 2^31 Gaussians times cameras, got ", images * gaussians,
                    "; pass fewer cameras in one call");
}

}  // namespace pyext::splat
