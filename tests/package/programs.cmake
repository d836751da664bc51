# SPDX-FileCopyrightText: 2026 The diffmamba authors
# SPDX-License-Identifier: Apache-2.0
# The same for each way of getting the library.
add_executable(program ../program.cpp)
target_link_libraries(program PRIVATE diffmamba::diffmamba)

add_executable(program_with_io ../program_with_io.cpp)
target_link_libraries(program_with_io PRIVATE diffmamba::io diffmamba::native)

# The library imposes no flags, and as a guest it brings no tests, examples or install rules.
get_target_property(flags diffmamba::diffmamba INTERFACE_COMPILE_OPTIONS)
if(flags)
  message(FATAL_ERROR "diffmamba::diffmamba imposes ${flags}")
endif()
foreach(target diffmamba_test_main conformance train_lm)
  if(TARGET ${target})
    message(FATAL_ERROR "a guest brought its own target ${target}")
  endif()
endforeach()

# Where the library was built for GPUs: header-only with nvcc, and from a .cpp with the kernels that were compiled once.
if(TARGET diffmamba::cuda)
  enable_language(CUDA)
  add_executable(program_cuda ../program_cuda.cu)
  target_link_libraries(program_cuda PRIVATE diffmamba::cuda)
  add_executable(program_gpu ../program_gpu.cpp)
  target_link_libraries(program_gpu PRIVATE diffmamba::cuda_instantiated)
endif()
