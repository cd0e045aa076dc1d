#!/usr/bin/env bash
# Makes tests/golden/summary.csv anew from a build in build/, and shows what changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
read -r -d '' -a arguments <tests/golden/arguments.txt || true
build/kvsim run "${arguments[@]}" tests/data/smollm2-harbour.h5 --quiet --out "$out/run"
cp "$out/run/summary.csv" tests/golden/summary.csv
git --no-pager diff --stat -- tests/golden/summary.csv
