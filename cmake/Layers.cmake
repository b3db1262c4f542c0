# SPDX-License-Identifier: Apache-2.0
# iommusim_layer(NAME <n> FOLDER <folder> [VENDOR_NEUTRAL] [TESTS_TEMPLATES] [PROGRAM <file name>]
#                [DEPENDS <layer>...] [LIBRARIES <imported target>...]
#                [TEST_DEPENDS <layer>...] [TEST_LABEL fast|sim] [TEST_TIMEOUT <seconds>])
#
# makes of the files directly in FOLDER:
#   *.cpp         library iommusim_<n>; header-only or missing folders are fine. With PROGRAM, main.cpp becomes the
#                 executable iommusim_<n> and the rest the library iommusim_<n>_lib, which tests can link.
#   *_test.cpp    <n>_test, its cases registered with CTest under the label TEST_LABEL; instrumented ones in shards
#   *_bench.cpp   a part of iommusim_bench (target bench runs it)
#   <s>_fuzz.cpp  <s>_replay, registered as Fuzz.<s>: runs the corpus <folder>/corpus/<s>/;
#                 with preset fuzz also the libFuzzer executable <s>_fuzz. <s> is unique in the tree.
#
# Tests, benchmarks and fuzzers may also use TEST_DEPENDS. VENDOR_NEUTRAL: the code may not name a vendor.
# TEST_LABEL sim: the tests link SystemC. TESTS_TEMPLATES: what is tested is compiled with the tests.

include(GoogleTest)

foreach(label fast sim)
  add_custom_target(tests_${label} COMMENT "Every test labelled ${label}")
endforeach()
add_custom_target(fuzzers COMMENT "Every libFuzzer executable")
add_library(iommusim_fuzz_replay_main OBJECT EXCLUDE_FROM_ALL tests/fuzz_replay_main.cpp)

function(iommusim_layer)
  cmake_parse_arguments(PARSE_ARGV 0 layer "VENDOR_NEUTRAL;TESTS_TEMPLATES" "NAME;FOLDER;PROGRAM;TEST_LABEL;TEST_TIMEOUT"
                        "DEPENDS;LIBRARIES;TEST_DEPENDS")
  if(NOT layer_TEST_LABEL)
    set(layer_TEST_LABEL fast)
  endif()
  if(NOT layer_TEST_TIMEOUT)
    set(layer_TEST_TIMEOUT 120)
  endif()
  set_property(GLOBAL APPEND_STRING PROPERTY iommusim_layer_table "${ARGN}\n")

  file(GLOB sources CONFIGURE_DEPENDS ${layer_FOLDER}/*.cpp)
  foreach(kind test bench fuzz)
    set(${kind}_sources ${sources})
    list(FILTER ${kind}_sources INCLUDE REGEX "_${kind}\\.cpp$")
  endforeach()
  list(FILTER sources EXCLUDE REGEX "_(test|bench|fuzz)\\.cpp$")

  set(library iommusim_${layer_NAME})
  if(layer_PROGRAM)
    set(library iommusim_${layer_NAME}_lib)
    _iommusim_program()
  endif()
  list(TRANSFORM layer_DEPENDS PREPEND iommusim_)
  list(TRANSFORM layer_TEST_DEPENDS PREPEND iommusim_)
  if(sources)
    add_library(${library} STATIC ${sources})
    target_link_libraries(${library} PUBLIC ${layer_DEPENDS} ${layer_LIBRARIES})
  else()
    add_library(${library} INTERFACE)
    target_link_libraries(${library} INTERFACE ${layer_DEPENDS} ${layer_LIBRARIES})
  endif()

  if(test_sources)
    _iommusim_tests()
  endif()
  foreach(source IN LISTS fuzz_sources)
    _iommusim_fuzzer(${source})
  endforeach()
  set_property(GLOBAL APPEND PROPERTY iommusim_bench_sources ${bench_sources})
  set_property(GLOBAL APPEND PROPERTY iommusim_libraries ${library})
endfunction()

# The helpers are macros of iommusim_layer: they read its variables.

macro(_iommusim_program)
  set(main ${sources})
  list(FILTER main INCLUDE REGEX "/main\\.cpp$")
  list(FILTER sources EXCLUDE REGEX "/main\\.cpp$")
  if(main)
    add_executable(iommusim_${layer_NAME} ${main})
    target_link_libraries(iommusim_${layer_NAME} PRIVATE ${library})
    set_target_properties(iommusim_${layer_NAME} PROPERTIES
                          OUTPUT_NAME ${layer_PROGRAM} RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
  endif()
endmacro()

macro(_iommusim_tests)
  set(test ${layer_NAME}_test)
  add_executable(${test} ${test_sources})
  # googletest's main comes first, for libsystemc has a main() too.
  target_link_libraries(${test} PRIVATE GTest::gmock_main ${library} ${layer_TEST_DEPENDS})
  # Libraries are optimised; optimising instrumented tests as well would take longer than running them.
  if(NOT layer_TESTS_TEMPLATES)
    target_compile_options(${test} PRIVATE $<$<CONFIG:Debug>:-O0>)
  endif()
  # Parsing googletest takes longer than most tests do.
  target_precompile_headers(${test} PRIVATE <gmock/gmock.h> <gtest/gtest.h>)
  add_dependencies(tests_${layer_TEST_LABEL} ${test})
  if(IOMMUSIM_INSTRUMENT STREQUAL "sanitizers" AND layer_TEST_LABEL STREQUAL "fast")
    _iommusim_shards()
  else()
    set(environment)
    if(layer_TEST_LABEL STREQUAL "sim")
      # SystemC switches stacks under AddressSanitizer's feet.
      set(environment ENVIRONMENT ASAN_OPTIONS=detect_stack_use_after_return=0)
    endif()
    # NO_PRETTY_VALUES: the printed value of a parameter is no stable name to select a test by.
    gtest_discover_tests(${test} NO_PRETTY_VALUES WORKING_DIRECTORY ${PROJECT_SOURCE_DIR} DISCOVERY_TIMEOUT 120
                         PROPERTIES TIMEOUT ${layer_TEST_TIMEOUT} LABELS ${layer_TEST_LABEL} ${environment})
  endif()
endmacro()

# Starting an instrumented process takes longer than most tests: they share a few. What a shard prints names the test
# that crashes or hangs.
macro(_iommusim_shards)
  set(shards 4)
  math(EXPR last "${shards} - 1")
  foreach(shard RANGE ${last})
    add_test(NAME ${test}.${shard} COMMAND ${test} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
    set_tests_properties(${test}.${shard} PROPERTIES TIMEOUT 300 LABELS fast
                         ENVIRONMENT "GTEST_TOTAL_SHARDS=${shards};GTEST_SHARD_INDEX=${shard}")
  endforeach()
endmacro()

macro(_iommusim_fuzzer source)
  get_filename_component(stem ${source} NAME_WE)
  string(REGEX REPLACE "_fuzz$" "" stem ${stem})
  add_executable(${stem}_replay ${source})
  target_link_libraries(${stem}_replay PRIVATE iommusim_fuzz_replay_main GTest::gtest ${library} ${layer_TEST_DEPENDS})
  add_dependencies(tests_fast ${stem}_replay)
  add_test(NAME Fuzz.${stem} COMMAND ${stem}_replay ${layer_FOLDER}/corpus/${stem}
           WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(Fuzz.${stem} PROPERTIES TIMEOUT ${layer_TEST_TIMEOUT} LABELS fast)
  if(IOMMUSIM_INSTRUMENT STREQUAL "fuzzer")
    add_executable(${stem}_fuzz ${source})
    target_link_libraries(${stem}_fuzz PRIVATE GTest::gtest ${library} ${layer_TEST_DEPENDS})
    target_link_options(${stem}_fuzz PRIVATE -fsanitize=fuzzer)
    add_dependencies(fuzzers ${stem}_fuzz)
  endif()
endmacro()

function(iommusim_finish_layers)
  get_property(table GLOBAL PROPERTY iommusim_layer_table)
  file(WRITE ${CMAKE_BINARY_DIR}/layers.txt "${table}")

  get_property(sources GLOBAL PROPERTY iommusim_bench_sources)
  if(sources)
    get_property(libraries GLOBAL PROPERTY iommusim_libraries)
    add_executable(iommusim_bench ${sources})
    target_link_libraries(iommusim_bench PRIVATE benchmark::benchmark_main ${libraries})
    add_custom_target(bench COMMAND iommusim_bench WORKING_DIRECTORY ${PROJECT_SOURCE_DIR} USES_TERMINAL)
  endif()
endfunction()
