# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2154  # root: set by whoever sources this
# Shared by iommusim, test and scripts/coverage.sh, which set $root: install_packages and build.

fail() {
  echo "iommusim: $*" >&2
  exit 1
}

missing_packages() {
  local wanted
  mapfile -t wanted < <(sed 's/#.*//' "$root/packages.txt" | xargs -n 1)
  comm -23 <(printf '%s\n' "${wanted[@]}" | sort) \
    <(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${wanted[@]}" 2> /dev/null |
      sed -n 's/^installed //p' | sort)
}

# Installs what packages.txt lists; costs one file comparison once that is done.
install_packages() {
  local stamp=$root/build/.packages-ok log=$root/build/packages.log
  local missing install as_root=()
  [[ $stamp -nt $root/packages.txt ]] && return
  command -v dpkg-query > /dev/null ||
    fail "this is no Debian: install what packages.txt lists by hand, then: mkdir -p build && touch build/.packages-ok"
  mkdir -p "$root/build"
  mapfile -t missing < <(missing_packages)
  if ((${#missing[@]})); then
    echo "iommusim: installing Debian packages: ${missing[*]}" >&2
    [[ $EUID -eq 0 ]] || as_root=(sudo)
    install=(apt-get install -y --no-install-recommends "${missing[@]}")
    {
      # A failed update still leaves older lists and cached packages to try.
      "${as_root[@]}" apt-get update || true
      "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive "${install[@]}" -o DPkg::Lock::Timeout=300
    } > "$log" 2>&1 ||
      fail "that failed (log: build/packages.log); run as root: apt-get update && ${install[*]}"
  fi
  touch "$stamp"
}

# One line that moves on a terminal; elsewhere a line now and then, so that a log shows life.
show_progress() {
  local line count=0
  while IFS= read -r line; do
    [[ $line == \[* ]] || continue
    if [[ -t 2 ]]; then
      printf '\r\e[K%.*s' "${COLUMNS:-80}" "$line" >&2
    elif ((++count % 25 == 0)); then
      echo "  ${line%%]*}]" >&2
    fi
  done
  if [[ -t 2 ]]; then printf '\r\e[K' >&2; fi
}

configure_and_compile() {
  local preset=$1 target=$2 directory=$root/build/$1
  # ninja configures again by itself, except when the presets change.
  if [[ ! $directory/build.ninja -nt $root/CMakePresets.json ]]; then
    (cd "$root" && cmake --preset "$preset") && touch "$directory/build.ninja"
  fi && ninja -C "$directory" "$target"
}

# build PRESET TARGET: quiet but for its progress; the log is build/PRESET/build.log.
build() {
  local directory=$root/build/$1
  local log=$directory/build.log
  mkdir -p "$directory"
  echo "iommusim: building $2, preset $1 (log: build/$1/build.log)" >&2
  # The lock: two runs started together would otherwise compile into the same folder.
  if ! { flock 9 && configure_and_compile "$@" 2>&1 | tee "$log" | show_progress; } 9> "$directory/.lock"; then
    tail -n 30 "$log" >&2
    fail "the build failed (log: build/$1/build.log)"
  fi
}
