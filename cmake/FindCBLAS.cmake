# SPDX-FileCopyrightText: 2026 The diffmamba authors
# SPDX-License-Identifier: Apache-2.0
# Finds a BLAS with the C interface: CBLAS::CBLAS. OpenBLAS is preferred; CBLAS_ROOT says where to look first.
include(FindPackageHandleStandardArgs)

find_path(CBLAS_INCLUDE_DIR NAMES cblas.h PATH_SUFFIXES openblas openblas-pthread cblas)
find_library(CBLAS_LIBRARY NAMES openblas mkl_rt blis cblas PATH_SUFFIXES openblas-pthread openblas)
mark_as_advanced(CBLAS_INCLUDE_DIR CBLAS_LIBRARY)
find_package_handle_standard_args(CBLAS REQUIRED_VARS CBLAS_LIBRARY CBLAS_INCLUDE_DIR)

if(CBLAS_FOUND AND NOT TARGET CBLAS::CBLAS)
  add_library(CBLAS::CBLAS UNKNOWN IMPORTED)
  set_target_properties(CBLAS::CBLAS PROPERTIES IMPORTED_LOCATION ${CBLAS_LIBRARY}
                                                INTERFACE_INCLUDE_DIRECTORIES ${CBLAS_INCLUDE_DIR})
endif()
