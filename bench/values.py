"""What values cost: `stats`, `diff`, `ties --by content` and `ls --digest` beside other tools and beside one pass.

Exits 1 if a target is missed.
"""

import sys

from _parts import DATA, Part, on_terminal, paramctl, peer, run, snippet
from _timing import Candidate, Target

BF16, TORCH, FLOAT32, TUNED, UNTIED, TURNED = (
    "gpt-508mb.safetensors",
    "gpt-508mb.pt",
    "gpt-1gb.safetensors",
    "gpt-508mb-tuned.safetensors",
    "gpt-508mb-untied.safetensors",
    "turned-128mb.safetensors",
)
SHA256SUM = "/usr/bin/sha256sum"

TORCH_LOOP = """
import sys, torch
from safetensors.torch import load_file
for name, tensor in load_file(sys.argv[1]).items():
    wide = tensor.float()
    found = (wide.mean(), wide.std(correction=0), wide.min(), wide.max(), wide.norm(),
             (wide == 0).sum(), wide.isnan().sum(), wide.isinf().sum())
    print(name, tensor.dtype, tuple(tensor.shape), *map(torch.Tensor.item, found))
"""
READ_ONCE = """
import sys, numpy
with open(sys.argv[1], "rb", buffering=0) as file:
    buffer = bytearray(1 << 18)
    values, most = numpy.frombuffer(buffer, numpy.float32), 0.0
    while nbytes := file.readinto(buffer):
        most = max(most, values[: nbytes // 4].max())
print(most)
"""


def stats() -> list[list[Candidate]]:
    """0.6 s where the loop takes 1.94 s; 3 times as fast as it, and 8 times as fast as the best peer."""
    loop = snippet(f"a loop in torch over {BF16}", TORCH_LOOP, str(DATA / BF16))
    ours = [paramctl("stats", name, target=Target(times=1 / 3, mib=150)) for name in (BF16, TORCH)]
    more = [
        paramctl("stats", BF16, more=("--quantiles", "0.01,0.5,0.99")),
        paramctl("stats", BF16, more=("--hist",)),
        on_terminal(paramctl("stats", BF16)),
    ]
    others = peer("sft", "stat", names=(BF16,))
    eighth = paramctl("stats", BF16, target=Target(times=1 / 8))
    return [[loop, *ours, *more], *([other, eighth] for other in others)]


def wide() -> list[list[Candidate]]:
    """Twice one pass over the bytes."""
    one = snippet(f"one pass over {FLOAT32}: read, and the maximum", READ_ONCE, str(DATA / FLOAT32))
    return [[one, paramctl("stats", FLOAT32, target=Target(times=2, mib=150))]]


def growth() -> list[list[Candidate]]:
    """Ten times the bytes, a hundred times: beyond memory."""
    sparse = {size: f"sparse-{size}gb.safetensors" for size in (1, 10, 100)}
    more = (paramctl("stats", sparse[size], target=Target(times=size, mib=150)) for size in (10, 100))
    return [[candidate._replace(timeout=1800) for candidate in (paramctl("stats", sparse[1]), *more)]]


HASHED = """
import sys, hashlib
with open(sys.argv[1], "rb") as file:
    print(hashlib.file_digest(file, "sha256").hexdigest())
"""


def hashed(name: str) -> list[Candidate]:
    """SHA-256 of a whole file, by a tool and by the library that digests are made with."""
    tool = Candidate(f"sha256sum {name}", (SHA256SUM, str(DATA / name)))
    return [tool, snippet(f"hashlib over {name}", HASHED, str(DATA / name))]


def digests() -> list[list[Candidate]]:
    """No slower than sha256sum of the file, and in the memory of a few pieces."""
    return [
        [*hashed(name), paramctl("ls", name, more=("--digest",), target=Target(times=1, mib=60))]
        for name in (TORCH, BF16)
    ]


def ties() -> list[list[Candidate]]:
    """Half of sha256sum: what differs is hardly read. A matrix and its transpose no slower than it, in tens of MiB."""
    targets = {UNTIED: Target(times=1 / 2, mib=60), TURNED: Target(times=1, mib=120)}
    return [
        [*hashed(name), paramctl("ties", name, more=("--by", "content"), target=target)]
        for name, target in targets.items()
    ]


COMPARED = """
import sys, torch
from safetensors.torch import load_file
a, b = map(load_file, sys.argv[1:])
for name in a:
    x, y = a[name].float(), b[name].float()
    change, dot = y - x, (x * y).sum()
    found = (change.abs().max(), change.norm(), change.norm() / x.norm(), dot / x.norm() / y.norm(),
             (change != 0).sum())
    print(name, *map(torch.Tensor.item, found))
"""


def differences() -> list[list[Candidate]]:
    """A third of a loop in torch, whether half is changed or nothing is; bytes that are the same are not decoded."""
    loop = snippet(f"a loop in torch over {BF16} and {TUNED}", COMPARED, str(DATA / BF16), str(DATA / TUNED))
    target = Target(times=1 / 3, mib=60)
    ours = [paramctl("diff", BF16, other, target=target)._replace(status=other == TUNED) for other in (TUNED, TORCH)]
    more = on_terminal(paramctl("diff", BF16, TUNED, more=("--depth", "3", "--stat")))._replace(status=1)
    return [[loop, *ours, more, *peer("sft", "diff", "--delta", names=(BF16, TUNED))]]


PARTS: dict[str, Part] = {
    "stats": ("Statistics of 254 million bfloat16", 5, stats),
    "wide": ("Statistics of 254 million float32", 5, wide),
    "digests": ("SHA-256 of each tensor", 5, digests),
    "ties": ("Ties by content", 5, ties),
    "diff": ("Differences of two files of 254 million bfloat16", 5, differences),
    "growth": ("Statistics of sparse files of 1, 10 and 100 GB", 1, growth),
}

if __name__ == "__main__":
    sys.exit(run(PARTS, __doc__, TUNED))
