# CPU kernels, compiled once per instruction set into a namespace of its name.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  set(PYEXT_ISAS baseline avx2 avx512 avx512_bf16)
else()
  set(PYEXT_ISAS baseline)
endif()
set(pyext_flags_baseline "")
set(pyext_flags_avx2 -mavx2 -mfma -mf16c)
set(pyext_flags_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma
    -mprefer-vector-width=512)
set(pyext_flags_avx512_bf16 ${pyext_flags_avx512} -mavx512bf16)

function(pyext_add_isa_kernels target)
  foreach(isa IN LISTS PYEXT_ISAS)
    add_library(kernels_${isa} OBJECT ${ARGN})
    target_include_directories(kernels_${isa} PRIVATE csrc)
    target_compile_definitions(kernels_${isa} PRIVATE PYEXT_ISA=${isa})
    # Contraction is off so that the same source rounds alike wherever it is inlined; fma() asks
    # for fused operations by name. GCC 12 warns of its own AVX-512 header.
    target_compile_options(kernels_${isa} PRIVATE -Wall -Wextra -Wno-maybe-uninitialized -Wno-uninitialized
      -ffp-contract=off -fno-math-errno ${pyext_flags_${isa}})
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:kernels_${isa}>)
  endforeach()
  if("avx512" IN_LIST PYEXT_ISAS)
    target_compile_definitions(${target} PRIVATE PYEXT_X86)
  endif()
endfunction()
