#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# hygiene.sh format|spdx|machine-paths: one check over the tracked files; run from the root of the repository.
set -euo pipefail

# NUL-separated. A source archive has no git: then every file counts.
tracked() {
  if git rev-parse --is-inside-work-tree > /dev/null 2>&1; then
    git ls-files -z
  else
    find . -path ./build -prune -o -type f -printf '%P\0'
  fi | while IFS= read -r -d '' file; do
    if [[ -f $file ]]; then printf '%s\0' "$file"; fi
  done
}

check_format() {
  tracked | grep -zE '\.[ch]pp$' | xargs -0r -n 16 -P 2 clang-format-19 --dry-run -Werror
}

# Results and the license itself carry no such line; JSON cannot.
check_spdx() {
  local missing=0 file
  while IFS= read -r -d '' file; do
    case $file in
      results/*) continue ;;
      *.[ch]pp | *.h | *.cmake | CMakeLists.txt | */CMakeLists.txt | *.sh | *.awk | *.py | *.yaml | *.yml) ;;
      .clang-format | .clang-tidy | .gitignore | packages.txt) ;;
      *) [[ $(head -c 2 "$file" | tr -d '\0') == '#!' ]] || continue ;;
    esac
    if ! head -n 3 "$file" | grep -q 'SPDX-License-Identifier: Apache-2\.0'; then
      echo "$file:1: no line 'SPDX-License-Identifier: Apache-2.0'"
      missing=1
    fi
  done < <(tracked)
  return "$missing"
}

# What would tie the repository to the machine on which it was written.
check_machine_paths() {
  local pattern='(^|[^A-Za-z0-9_.])/(work|root|tmp/bash_jobs)[/ "]|deb\.debian\.org|registry\.npmjs'
  ! tracked | xargs -0r grep -nIE "$pattern" --
}

case ${1-} in
  format) check_format ;;
  spdx) check_spdx ;;
  machine-paths) check_machine_paths ;;
  *)
    echo "usage: $0 format|spdx|machine-paths" >&2
    exit 2
    ;;
esac
