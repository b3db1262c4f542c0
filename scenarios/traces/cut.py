#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Cuts a time window out of a recorded trace, so that what is left is consistent.

usage: cut.py TRACE.csv.zst FROM_NS TO_NS OUT.csv.zst

Kept: every line of the window, and before it the map lines of whatever was mapped when the window begins.
"""
import subprocess
import sys


def main(source, begin, end, target):
    header, live, window = [], {}, []
    text = subprocess.run(["zstd", "-dcq", source], check=True, capture_output=True, text=True).stdout
    for line in text.splitlines():
        if line.startswith("#"):
            header.append(line)
            continue
        columns = line.split(",", 7)
        time, event = int(columns[0]), columns[1]
        if time > end:
            break
        if time >= begin:
            window.append(line)
        elif event == "map":
            live[int(columns[4], 16)] = (int(columns[5]), line)
        elif event == "unmap":
            first, size = int(columns[4], 16), int(columns[5])
            for address in [a for a in live if first <= a < first + size]:
                del live[address]
    note = f"# cut with scenarios/traces/cut.py: {begin} to {end} ns, and the maps that were live then"
    earlier = sorted((line for _, line in live.values()), key=lambda line: int(line.split(",", 1)[0]))
    cut = "\n".join(header + [note] + earlier + window) + "\n"
    subprocess.run(["zstd", "-19", "-qf", "-o", target], input=cut, check=True, text=True)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
