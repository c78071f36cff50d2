#!/bin/sh
# Installs the tools that look.py compares with, in a virtual environment of their own.
# A tool that would pull torch in is skipped: this machine may not have room for a second one.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
peers=${PARAMCTL_BENCH_DATA:-$root/bench/data}/peers
python=${PYTHON:-$root/.venv/bin/python}

mkdir -p "$peers"
[ -x "$peers/bin/python" ] || "$python" -m venv "$peers"
echo 'torch<0' > "$peers/no-torch.txt"

for tool in safetensors-print sft-cli modelinfo-cli "ckptkit[cli]" model-fingerprint reminis tensortracker; do
    if "$peers/bin/python" -m pip install --quiet --constraint "$peers/no-torch.txt" "$tool"; then
        "$peers/bin/python" -m pip show "${tool%%[*}" | sed -n '1,2p' | paste -s -d ' ' -
    else
        echo "skipped: $tool" >&2
    fi
done
