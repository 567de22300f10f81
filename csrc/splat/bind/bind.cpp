// Which backend a tensor's kernels come from, and the checks all bindings share.
#include "splat/bind/bind.h"

#include "core/isa.h"

namespace pyext {

namespace baseline {
extern const splat::Backend splat_backend;
}
#if defined(PYEXT_X86)
namespace avx2 {
extern const splat::Backend splat_backend;
}
namespace avx512 {
extern const splat::Backend splat_backend;
}
#endif

}  // namespace pyext

#if defined(PYEXT_WITH_CUDA)
extern "C" const pyext::splat::Backend* pyext_splat_cuda();
#endif

namespace pyext::splat {

namespace {

const Backend& cpu_backend() {
  if (void* symbol = loaded_symbol("pyext_splat_cuda"))
    return *reinterpret_cast<const Backend* (*)()>(symbol)();
#if defined(PYEXT_X86)
  const std::string name = isa();
  if (name == "avx512") return avx512::splat_backend;
  if (name == "avx2") return avx2::splat_backend;
#endif
  return baseline::splat_backend;
}

}  // namespace

const Backend& backend_for(const Tensor& tensor) {
#if defined(PYEXT_WITH_CUDA)
  if (tensor.is_cuda()) return *pyext_splat_cuda();
#endif
  (void)tensor;
  return cpu_backend();
}

Context context_for(const Tensor& tensor, Scratch& scratch) {
  return {current_stream(tensor), &scratch, &Scratch::allocate};
}

int32_t image_side(int64_t size, const char* name) {
  TORCH_CHECK_VALUE(size >= 1 && size <= (1 << 20), name, ": expected 1 to 1048576 pixels, got ",
                    size);
  return int32_t(size);
}

int64_t tiles_of(int64_t images, int64_t width, int64_t height) {
  return images * ((width + kTile - 1) / kTile) * ((height + kTile - 1) / kTile);
}

Tensor dense(const OptionalTensor& tensor, const char* name, const Tensor& like,
             const char* like_name, at::IntArrayRef shape) {
  if (!tensor) return {};
  check_like(*tensor, name, like, like_name);
  check_shape(*tensor, name, shape);
  return tensor->contiguous();
}

Tensor dense_integers(const Tensor& tensor, const char* name, at::ScalarType type,
                      const Tensor& like, const char* like_name, at::IntArrayRef shape) {
  check_dtype(tensor, name, type);
  check_device(tensor, name, like, like_name);
  check_shape(tensor, name, shape);
  return tensor.contiguous();
}

}  // namespace pyext::splat
