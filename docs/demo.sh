#!/bin/sh
# The main job on the bundled models. Every command is shown before it is run.
set -eu
cd "$(dirname "$0")/.."
show() {
	printf '\n$ %s\n' "$*"
	"$@"
}
show paramctl tree models/gpt.py
show paramctl ties models/gpt.py -f table
show paramctl show models/mlp.py 2.bias --seed 0 -f table
show paramctl init models/mlp.py --scheme xavier --layer 0 --seed 0 -f table
show paramctl stats models/nested.py --depth 2 --hist --seed 0 -f table
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
show paramctl init models/tied.py --scheme kaiming --seed 0 -o "$scratch/tied.pt" -f table
show paramctl convert "$scratch/tied.pt" "$scratch/tied.safetensors" -f table
show paramctl diff "$scratch/tied.pt" "$scratch/tied.safetensors" --all -f table
show paramctl ties "$scratch/tied.safetensors" -f table
show paramctl grad models/tied.py 2 --input 2,4 --seed 0 -f table
