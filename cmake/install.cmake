# SPDX-FileCopyrightText: 2026 The diffmamba authors
# SPDX-License-Identifier: Apache-2.0
# find_package(diffmamba 0.1) for others: headers, targets, version. Works from any prefix; nothing compiled but, with
# CUDA, diffmamba::cuda_instantiated.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_DATADIR}/cmake/diffmamba)
set(independent ARCH_INDEPENDENT)

set(targets diffmamba diffmamba_native)
if(TARGET diffmamba_io)
  list(APPEND targets diffmamba_io)
  set(DIFFMAMBA_HAS_IO ON)
endif()
if(DIFFMAMBA_ENABLE_CUDA)
  list(APPEND targets diffmamba_cuda diffmamba_cuda_instantiated)
  set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/diffmamba)
  set(independent "")
endif()
install(TARGETS ${targets} EXPORT diffmambaTargets FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT diffmambaTargets NAMESPACE diffmamba:: DESTINATION ${package_dir})

configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/diffmambaConfig.cmake.in
                              ${CMAKE_CURRENT_BINARY_DIR}/diffmambaConfig.cmake INSTALL_DESTINATION ${package_dir})
# Before 1.0 a minor version may break what stood before.
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/diffmambaConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion ${independent})
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/diffmambaConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/diffmambaConfigVersion.cmake
              ${CMAKE_CURRENT_LIST_DIR}/FindCBLAS.cmake
        DESTINATION ${package_dir})
install(FILES ${CMAKE_CURRENT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
