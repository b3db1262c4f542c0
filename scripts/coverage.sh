#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs every test with coverage counters and prints the coverage of each source.
# gcov would count no line inside a coroutine; clang's own counters do.
set -euo pipefail

root=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
# shellcheck source=scripts/setup.sh
source "$root/scripts/setup.sh"
cd "$root"

install_packages
build coverage all
rm -rf build/coverage/profiles
ctest --preset coverage --output-on-failure
llvm-profdata-19 merge -o build/coverage/all.profdata build/coverage/profiles/*.profraw
objects=()
for program in build/coverage/*_test build/coverage/*_replay; do
  if [[ -x $program ]]; then objects+=(-object "$program"); fi
done
llvm-cov-19 report -instr-profile build/coverage/all.profdata "${objects[@]}" \
  -ignore-filename-regex '_(test|fuzz|bench)\.cpp$|/usr/'
