# SPDX-FileCopyrightText: 2026 The diffmamba authors
# SPDX-License-Identifier: Apache-2.0
# diffmamba::cuda: the GPU definitions (*.cuh), header-only, for sources compiled by nvcc.
# diffmamba::cuda_instantiated: the same compiled once, one file per operator, so that a .cpp compiled by any C++20
# compiler uses the GPU by linking it.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80 90a)  # tensor cores by mma.sync; Hopper with wgmma and TMA
endif()
# Our own tests need one architecture only, whatever the compiled library is for.
set(DIFFMAMBA_CUDA_ARCHITECTURES ${CMAKE_CUDA_ARCHITECTURES} CACHE STRING "Architectures of diffmamba::cuda_instantiated")
enable_language(CUDA)
find_package(CUDAToolkit 12.4 REQUIRED)
set(CMAKE_CUDA_COMPILE_OPTIONS_WARNING_AS_ERROR "")  # CMAKE_COMPILE_WARNING_AS_ERROR is of the C++ compiler

add_library(diffmamba_cuda INTERFACE)
add_library(diffmamba::cuda ALIAS diffmamba_cuda)
set_target_properties(diffmamba_cuda PROPERTIES EXPORT_NAME cuda)
# Under nvcc Eigen would turn its SIMD off, and in a program with .cpp and .cu files the link order would decide.
target_compile_definitions(diffmamba_cuda INTERFACE EIGEN_NO_CUDA)
# CMake 3.25 with nvcc 13 knows neither cuda_std_20 nor CUDA_STANDARD 20.
# It warns of GCC's own pragmas in the CPU's kernels, too (1675).
target_compile_options(diffmamba_cuda INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20 --diag-suppress=1675>)
if(TARGET OpenMP::OpenMP_CXX AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # The inline functions of .cpp and .cu files must be the same ones.
  target_compile_options(diffmamba_cuda INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-fopenmp>)
endif()
target_link_libraries(diffmamba_cuda INTERFACE diffmamba CUDA::cudart CUDA::cublasLt)

file(GLOB diffmamba_instantiations CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/src/cuda/*.cu)
add_library(diffmamba_cuda_instantiated STATIC ${diffmamba_instantiations})
add_library(diffmamba::cuda_instantiated ALIAS diffmamba_cuda_instantiated)
set_target_properties(diffmamba_cuda_instantiated PROPERTIES EXPORT_NAME cuda_instantiated POSITION_INDEPENDENT_CODE ON
                      CUDA_ARCHITECTURES "${DIFFMAMBA_CUDA_ARCHITECTURES}")
target_link_libraries(diffmamba_cuda_instantiated PUBLIC diffmamba_cuda)
target_compile_options(diffmamba_cuda_instantiated PRIVATE
  $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra --diag-suppress=20012>)
