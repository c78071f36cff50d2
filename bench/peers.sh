#!/bin/sh
# Installs the tools that look.py compares with, in a virtual environment of their own.
# A tool that would pull torch in is skipped, and those that can use it find the one of the project.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
peers=${PARAMCTL_BENCH_DATA:-$root/bench/data}/peers
python=${PYTHON:-$root/.venv/bin/python}

mkdir -p "$peers"
[ -x "$peers/bin/python" ] || "$python" -m venv "$peers"
echo 'torch<0' > "$peers/no-torch.txt"
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
    > "$("$peers/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"

for tool in safetensors-print sft-cli modelinfo-cli "ckptkit[cli]" model-fingerprint reminis tensortracker; do
    if "$peers/bin/python" -m pip install --quiet --constraint "$peers/no-torch.txt" "$tool"; then
        "$peers/bin/python" -m pip show "${tool%%[*}" | sed -n '1,2p' | paste -s -d ' ' -
    else
        echo "skipped: $tool" >&2
    fi
done
