# SPDX-License-Identifier: Apache-2.0
# Language, warnings and instrumentation of every target. There is no third-party source in the tree to exempt.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_COMPILE_WARNING_AS_ERROR ON)

# Include paths are written from the root of the repository.
include_directories(${PROJECT_SOURCE_DIR})
add_compile_options(-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wnon-virtual-dtor -Wold-style-cast)
if(CMAKE_BUILD_TYPE STREQUAL "Debug")
  add_compile_definitions(_GLIBCXX_ASSERTIONS)
endif()

set(IOMMUSIM_INSTRUMENT none CACHE STRING "none, sanitizers, fuzzer or coverage")
set_property(CACHE IOMMUSIM_INSTRUMENT PROPERTY STRINGS none sanitizers fuzzer coverage)

set(sanitizers -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
if(IOMMUSIM_INSTRUMENT STREQUAL "sanitizers")
  add_compile_options(${sanitizers})
  add_link_options(${sanitizers})
elseif(IOMMUSIM_INSTRUMENT STREQUAL "fuzzer")
  # Only a fuzzer itself links libFuzzer's main (Layers.cmake); everything is instrumented for it.
  add_compile_options(${sanitizers} -fsanitize=fuzzer-no-link)
  add_link_options(${sanitizers})
elseif(IOMMUSIM_INSTRUMENT STREQUAL "coverage")
  # %m: one profile a binary, merged over its runs.
  add_compile_options(-fprofile-instr-generate=${CMAKE_BINARY_DIR}/profiles/%m.profraw -fcoverage-mapping)
  add_link_options(-fprofile-instr-generate)
elseif(NOT IOMMUSIM_INSTRUMENT STREQUAL "none")
  message(FATAL_ERROR "IOMMUSIM_INSTRUMENT: unknown value '${IOMMUSIM_INSTRUMENT}'")
endif()
