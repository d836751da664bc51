# SPDX-FileCopyrightText: 2026 The diffmamba authors
# SPDX-License-Identifier: Apache-2.0
# The README contains examples/first_program.cpp, from its first include on, word for word.
file(READ ${ROOT}/README.md readme)
file(READ ${ROOT}/examples/first_program.cpp program)
string(FIND "${program}" "#include" begin)
string(SUBSTRING "${program}" ${begin} -1 program)
string(FIND "${readme}" "```cpp\n${program}```" found)
if(found EQUAL -1)
  message(FATAL_ERROR "the first program of README.md is not examples/first_program.cpp:\n${program}")
endif()
foreach(path scripts/demo.sh scripts/test.sh bench/peers/run.sh CONTRIBUTING.md LICENSE)
  if(NOT EXISTS ${ROOT}/${path})
    message(FATAL_ERROR "README.md names ${path}, which is not there")
  endif()
endforeach()
