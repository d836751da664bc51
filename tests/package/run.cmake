# SPDX-FileCopyrightText: 2026 The diffmamba authors
# SPDX-License-Identifier: Apache-2.0
# cmake -D WAY=... -P run.cmake: see CMakeLists.txt.
function(run what)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE status OUTPUT_VARIABLE out ERROR_VARIABLE out)
  message("${out}")
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "package_${WAY}: ${what} failed (${status})")
  endif()
endfunction()

set(cuda "")
if(CUDA_COMPILER)
  set(cuda -D CMAKE_CUDA_COMPILER=${CUDA_COMPILER} -D CMAKE_CUDA_ARCHITECTURES=90a)
endif()
file(REMOVE_RECURSE ${SCRATCH})
set(where -D DIFFMAMBA_SOURCE=${LIBRARY})
if(WAY STREQUAL "find_package")
  run("installing the library" ${CMAKE_COMMAND} --install ${LIBRARY_BUILD} --prefix ${SCRATCH}/prefix)
  # Moved after the installation: nothing in the package may remember where it was.
  file(RENAME ${SCRATCH}/prefix ${SCRATCH}/moved)
  set(where -D CMAKE_PREFIX_PATH=${SCRATCH}/moved)
endif()
run("configuring" ${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR}/${WAY} -B ${SCRATCH}/build -G ${GENERATOR}
    -D CMAKE_CXX_COMPILER=${COMPILER} -D CMAKE_BUILD_TYPE=Release ${where} ${cuda})
run("building" ${CMAKE_COMMAND} --build ${SCRATCH}/build)
run("running" ${SCRATCH}/build/program)
run("running with io" ${SCRATCH}/build/program_with_io)
if(CUDA_COMPILER AND WAY STREQUAL "find_package")
  run("running with CUDA, header-only" ${SCRATCH}/build/program_cuda)
  run("running with CUDA, instantiated" ${SCRATCH}/build/program_gpu)
endif()
