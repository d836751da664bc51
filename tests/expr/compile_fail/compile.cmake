# SPDX-FileCopyrightText: 2026 The diffmamba authors
# SPDX-License-Identifier: Apache-2.0
# cmake -DCOMPILER=... -DSOURCE=... -DINCLUDE="a;b" -P compile.cmake: SOURCE compiles, and with -DMISTAKE fails with the sentence
# that stands behind "// expect: " in it.
file(STRINGS ${SOURCE} lines REGEX "^// expect: ")
list(GET lines 0 sentence)
string(REPLACE "// expect: " "" sentence "${sentence}")
set(folders)
foreach(folder ${INCLUDE})
  list(APPEND folders -I${folder})
endforeach()

execute_process(COMMAND ${COMPILER} -std=c++20 -fsyntax-only ${folders} ${SOURCE} RESULT_VARIABLE result ERROR_VARIABLE output)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "the right form does not compile:\n${output}")
endif()
execute_process(COMMAND ${COMPILER} -std=c++20 -fsyntax-only -DMISTAKE ${folders} ${SOURCE} RESULT_VARIABLE result
                ERROR_VARIABLE output)
if(result EQUAL 0)
  message(FATAL_ERROR "the mistake compiles")
endif()
string(FIND "${output}" "${sentence}" found)
if(found EQUAL -1)
  message(FATAL_ERROR "the output lacks the sentence \"${sentence}\":\n${output}")
endif()
