#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# cli_test.sh PROGRAM: what a user types. Bad input ends with exit code 1 and one clear line on stderr, never with a crash,
# a hang or a result; the same command twice writes the same bytes; results/reference/ holds what the scenarios give.
set -u
program=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failures=0
fail() {
  echo "FAILED: $1"
  failures=$((failures + 1))
}

# refused NAME PATTERN COMMAND…: exit code 1, PATTERN in a line of stderr, no more than a few lines.
refused() {
  local name=$1 pattern=$2
  shift 2
  timeout 60 "$program" "$@" >"$folder/out" 2>"$folder/err"
  local code=$?
  [[ $code == 1 ]] || fail "$name: exit code $code"
  grep -qE -- "$pattern" "$folder/err" || fail "$name: expected '$pattern', got: $(head -2 "$folder/err")"
  [[ $(wc -l <"$folder/err") -le 4 ]] || fail "$name: more than four lines: $(cat "$folder/err")"
}
# edited FROM TO: smoke.yaml with one text replaced, as a file; fails when there is nothing to replace.
edited() {
  grep -qF -- "$1" scenarios/smoke.yaml || fail "smoke.yaml does not hold: $1"
  FROM=$1 TO=$2 perl -0pe 's/\Q$ENV{FROM}\E/$ENV{TO}/' scenarios/smoke.yaml >"$folder/edited.yaml"
  echo "$folder/edited.yaml"
}
at='^.*edited\.yaml:[0-9]+:[0-9]+: '

refused "misspelt key" "${at}.*packet_sise.*packet_size" validate "$(edited 'packet_size: 1500 B' 'packet_sise: 1500 B')"
refused "missing unit" "${at}.*packet_size|unit" validate "$(edited 'packet_size: 1500 B' 'packet_size: 1500')"
refused "impossible combination" "${at}" validate "$(edited 'buffer_size: 2 KiB' 'buffer_size: 1 KiB')"
refused "cyclic topology" "${at}.*(cycle|circle|itself)" validate "$(edited 'root_ports: [{name: port0}]' \
  'root_ports: [{name: port0}]
  switches: [{name: s0, upstream: s1, latency: 100 ns}, {name: s1, upstream: s0, latency: 100 ns}]')"
refused "BDF twice" "${at}.*BDF" validate "$(edited 'devices:
  - name: nic0' 'devices:
  - name: nic1
    bdf: "03:00.0"
    upstream: port0
    domain: guest0
    workload: {kind: nic, direction: receive, packet_size: 1500 B, buffer_size: 2 KiB}
  - name: nic0')"
refused "device behind no IOMMU" "${at}.*IOMMU" validate "$(edited 'root_ports: [{name: port0}]' \
  'root_ports: [{name: port0}, {name: port1}]' && sed -i 's/upstream: port0/upstream: port1/' "$folder/edited.yaml")"
refused "more memory than the machine has" "${at}.*(platform|memory)" run "$(edited 'memory: 64 MiB' 'memory: 1 TiB')"
refused "zero-size DMA" "${at}" validate "$(edited \
  'workload: {kind: nic, direction: receive, packet_size: 1500 B, buffer_size: 2 KiB, ring_entries: 32}' \
  'workload: {kind: random_dma, access: read, window: 1 MiB, access_size: 0 B}')"
refused "no such scenario" "nowhere.yaml" run "$folder/nowhere.yaml"
refused "unknown strategy" "pv_iomu.*pv_iommu" run scenarios/smoke.yaml --strategies pv_iomu --out "$folder/x"
refused "unknown verb" "." runn scenarios/smoke.yaml

# Traces. A scenario beside each, because a trace is found relative to its scenario.
trace_scenario() {
  sed "s|file: traces/vtd-nvme-strict.csv.zst|file: $1|" scenarios/strategies_nvme_trace.yaml >"$folder/trace.yaml"
  echo "$folder/trace.yaml"
}
head -c 20000 scenarios/traces/vtd-nvme-strict.csv.zst >"$folder/cut.csv.zst"
refused "truncated trace" "cut.csv.zst" run "$(trace_scenario cut.csv.zst)" --out "$folder/x"
zstd -dcq scenarios/traces/vtd-nvme-strict.csv.zst >"$folder/whole.csv"
perl -pe 's/,map,/,mop,/ if $. == 200' "$folder/whole.csv" >"$folder/corrupt.csv"
refused "missing trace" "absent.csv" run "$(trace_scenario absent.csv)" --out "$folder/x"
{ grep -v '^[0-9]' "$folder/whole.csv"; grep '^[0-9]' "$folder/whole.csv" | grep -m1 ',unmap,'; } >"$folder/unmap.csv"
refused "unmap of what was never mapped" "unmap.csv:[0-9]+: .*(map|live)" run "$(trace_scenario unmap.csv)" --out "$folder/x"

# Vectors.
vectors=$(ls models/vtd/vectors/*.gz | head -1)
head -c 3000 "$vectors" >"$folder/cut.jsonl.gz"
refused "truncated vectors" "cut.jsonl.gz" check-vectors "$folder/cut.jsonl.gz"
zcat "$vectors" | head -3 | sed '2s/[{]/[/' >"$folder/corrupt.jsonl"
refused "corrupt vectors" "corrupt.jsonl:[0-9]+" check-vectors "$folder/corrupt.jsonl"

# Hardware that a family does not have.
sed 's/^strategies:.*/strategies: [{kind: nested, doorbell: guest_queue}]/' scenarios/smoke.yaml >"$folder/queue.yaml"
refused "guest queue without such hardware" "vtd.*one command queue" run "$folder/queue.yaml" --out "$folder/x"
sed 's/^strategies:.*/strategies: [{kind: pv_iommu, host_queues: 4}]/' scenarios/smoke.yaml >"$folder/queue.yaml"
refused "several queues without such hardware" "vtd.*one command queue" run "$folder/queue.yaml" --out "$folder/x"

# The same bytes twice, and in another process order.
"$program" run scenarios/smoke.yaml --quiet --out "$folder/a" || fail "smoke.yaml does not run"
"$program" run scenarios/smoke.yaml --quiet --out "$folder/b" --jobs 1 --shuffle 7 || fail "smoke.yaml does not run again"
for file in report.json metrics.csv report.md effective.yaml; do
  cmp -s "$folder/a/$file" "$folder/b/$file" || fail "$file differs between two runs"
done
# What was written is a scenario again, with the same results.
cp "$folder/a/effective.yaml" "$folder/again.yaml"
"$program" run "$folder/again.yaml" --quiet --out "$folder/c" || fail "effective.yaml does not run"
cmp -s "$folder/a/report.json" "$folder/c/report.json" || fail "effective.yaml gives other results"

# Committed results are those of the code as it is. After a change that is meant, with an explanation in its message:
# run the scenario with --out results/reference/NAME and remove all but report.json and report.md.
for reference in results/reference/*/; do
  name=$(basename "$reference")
  "$program" run "scenarios/$name.yaml" --quiet --out "$folder/$name" || fail "$name.yaml does not run"
  cmp -s "$folder/$name/report.json" "$reference/report.json" || fail "$name.yaml: report.json is not the committed one"
done

# The README's paragraph on PV-IOMMU is what the committed result says.
sed -n '/^<!-- pv_design_space -->$/,/^<!-- \/pv_design_space -->$/p' README.md | sed '1d;$d' >"$folder/written"
scripts/pv_design_space.pl results/reference/pv_design_space/report.json >"$folder/generated" ||
  fail "scripts/pv_design_space.pl does not run"
cmp -s "$folder/written" "$folder/generated" || fail "README.md's paragraph is not the one that the result gives"

[[ $failures == 0 ]] && echo "all of it refused or repeated as it should"
exit "$((failures != 0))"
