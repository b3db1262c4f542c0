# SPDX-License-Identifier: Apache-2.0
# All from Debian packages (packages.txt). Imported targets are SYSTEM: their warnings do not count.

find_package(benchmark REQUIRED)
find_package(Boost REQUIRED)
find_package(CLI11 REQUIRED)
find_package(fmt REQUIRED)
find_package(GTest REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(yaml-cpp REQUIRED)
find_package(ZLIB REQUIRED)
find_package(zstd REQUIRED)

find_package(PkgConfig REQUIRED)
pkg_check_modules(SYSTEMC REQUIRED IMPORTED_TARGET systemc)
# Debian builds SystemC as C++17 and its headers insist on the same; this pins what they compare and keeps their other
# consistency checks. sc_spawn must be enabled before <systemc> is first seen.
target_compile_definitions(PkgConfig::SYSTEMC INTERFACE SC_CPLUSPLUS=201703L SC_INCLUDE_DYNAMIC_PROCESSES)
# libsystemc is bound at load time and has an own main() that calls sc_main(). Ours and googletest's main() come first,
# so that call never happens, but the symbol must exist.
target_link_options(PkgConfig::SYSTEMC INTERFACE LINKER:--defsym=sc_main=main)
