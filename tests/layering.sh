#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# layering.sh TABLE: checks what the sources under the current directory include and name against the layers that
# CMakeLists.txt declares. TABLE is build/<preset>/layers.txt: the arguments of each iommusim_layer() call.
set -eu

folders=
for folder in sim models; do
  if [ -d "$folder" ]; then folders="$folders $folder"; fi
done
[ -n "$folders" ] || exit 0
# shellcheck disable=SC2086  # a list of two fixed words
find $folders -name '*.[ch]pp' | sort | awk -v table="$1" -f "$(dirname "$0")/layering.awk"
