"""Makes the files that the benches read, each only if it is missing.

They go to `bench/data/`, or to `$PARAMCTL_BENCH_DATA`, and take about 4.3 GB:

    small.{pt,safetensors}        the network of models/mlp.py
    gpt-508mb.{pt,safetensors}    a bfloat16 GPT of 254,053,376 parameters, lm_head tied to wte
    gpt-508mb-tuned.safetensors   the same with eight of its layers trained a little: half of its tensors changed
    gpt-508mb-untied.safetensors  the same with lm_head and wte each stored: a tie that was lost
    turned-128mb.safetensors      a float32 matrix of 4096 by 4096, and its transpose
    gpt-1gb.safetensors           the GPT in float32
    sparse-{1,10,100}gb.safetensors   zeros of float32 that take no room on the disk
    moe-90k.{pt,safetensors}      90,000 tensors of two or four elements, named as a mixture of experts
    llama-250mb.{gguf,safetensors} 432 tensors in float16; the GGUF with a vocabulary of 256,000 and as many merges
"""

import importlib.util
import json
import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import gguf
import numpy as np
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("PARAMCTL_BENCH_DATA", ROOT / "bench" / "data"))

GPT_NUMEL = 254_053_376
MOE_TENSORS = 90_000
LLAMA_LAYERS, LLAMA_WIDTH, LLAMA_WORDS = 48, 512, 256_000
MOE_LAYERS, MOE_DENSE_LAYERS, MOE_EXPERTS = 61, 3, 512


def definition(name: str) -> ModuleType:
    """The module in `models/NAME.py`."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "models" / f"{name}.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(ROOT / "models" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small() -> nn.Module:
    torch.manual_seed(0)
    return definition("mlp").net()


def gpt() -> nn.Module:
    """Every parameter random, norms and biases too, so that no two tensors are alike by chance."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = definition("gpt").model(vocab_size=50257, context=1024, width=1024, layers=16, heads=16)
    torch.set_default_dtype(torch.float32)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    numel = sum(parameter.numel() for parameter in model.parameters())
    if numel != GPT_NUMEL:
        raise ValueError(f"models/gpt.py has {numel:,} parameters, not {GPT_NUMEL:,}")
    return model


def moe_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (2, 2)
    for layer in range(MOE_LAYERS):
        yield from ((f"model.layers.{layer}.{name}", shape) for name, shape in moe_layer_shapes(layer))
    yield "model.norm.weight", (2,)
    yield "lm_head.weight", (2, 2)


def moe_layer_shapes(layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The first layers have a plain feed-forward, the others a router, a shared expert and 512 more."""
    yield "input_layernorm.weight", (2,)
    for projection in "qkvo":
        yield f"self_attn.{projection}_proj.weight", (2, 2)
        yield f"self_attn.{projection}_proj.bias", (2,)
    yield "post_attention_layernorm.weight", (2,)
    if layer < MOE_DENSE_LAYERS:
        yield from feed_forward_shapes("mlp")
        return
    yield "mlp.gate.weight", (2, 2)
    yield "mlp.gate.e_score_correction_bias", (2,)
    yield from feed_forward_shapes("mlp.shared_experts")
    for expert in range(MOE_EXPERTS):
        yield from feed_forward_shapes(f"mlp.experts.{expert}")


def feed_forward_shapes(path: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    for projection in ("gate", "up", "down"):
        yield f"{path}.{projection}_proj.weight", (2, 2)


def moe() -> dict[str, Tensor]:
    torch.manual_seed(0)
    tensors = {name: torch.randn(shape).to(torch.bfloat16) for name, shape in moe_shapes()}
    if len(tensors) != MOE_TENSORS:
        raise ValueError(f"{len(tensors):,} tensors, not {MOE_TENSORS:,}")
    return tensors


def llama() -> Iterator[tuple[str, np.ndarray]]:
    chance = np.random.default_rng(0)
    width = LLAMA_WIDTH
    shapes: dict[str, tuple[int, ...]] = {"attn_norm": (width,), "ffn_norm": (width,)}
    shapes |= {f"attn_{name}": (width, width) for name in ("q", "k", "v", "output")}
    shapes |= {"ffn_gate": (2 * width, width), "ffn_up": (2 * width, width), "ffn_down": (width, 2 * width)}
    for layer in range(LLAMA_LAYERS):
        for name, shape in shapes.items():
            yield f"blk.{layer}.{name}.weight", chance.standard_normal(shape, np.float32).astype(np.float16)


def save_gguf(path: Path) -> None:
    """Metadata as a converted model has it: most of a header are the texts of its vocabulary."""
    chance = random.Random(0)
    words = [
        "".join(chance.choices("abcdefghijklmnopqrstuvwxyzĠ▁é", k=chance.randint(1, 14))) for _ in range(LLAMA_WORDS)
    ]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LLAMA_LAYERS)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_scores([float(-i) for i in range(LLAMA_WORDS)])
    writer.add_token_types([1] * LLAMA_WORDS)
    writer.add_token_merges([f"{word} {other}" for word, other in zip(words, reversed(words), strict=True)])
    for name, values in llama():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def save_state_dict(model: nn.Module, path: Path) -> None:
    """Tied names share one storage in the file, as they do in the model."""
    torch.save(model.state_dict(), path)


def save_with_aliases(model: nn.Module, path: Path) -> None:
    """Of tied names one is kept; the other goes into `__metadata__`."""
    save_model(model, str(path), metadata={"format": "pt"})


def tuned() -> nn.Module:
    """Eight of sixteen layers moved by a thousandth of a weight's spread and more, as a short training does."""
    model = gpt()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(f".h.{layer}." in name for layer in range(8, 16)):
                parameter.add_(1e-3 * torch.randn_like(parameter))
    return model


def save_untied(model: nn.Module, path: Path) -> None:
    """Every name in full, as when tensors are cloned to please a format that knows no ties."""
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, path, metadata={"format": "pt"})


def save_turned(path: Path, size: int) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(size, size)
    save_file({"matrix": matrix, "turned": matrix.t().contiguous()}, path)


def save_sparse(path: Path, numel: int) -> None:
    """One matrix of zeros of float32, of which only the header is on the disk."""
    entry = {"dtype": "F32", "shape": [numel // 4096, 4096], "data_offsets": [0, numel * 4]}
    header = json.dumps({"w": entry}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + numel * 4)


FILES: dict[str, Callable[[Path], None]] = {
    "small.pt": lambda path: save_state_dict(small(), path),
    "small.safetensors": lambda path: save_with_aliases(small(), path),
    "gpt-508mb.pt": lambda path: save_state_dict(gpt(), path),
    "gpt-508mb.safetensors": lambda path: save_with_aliases(gpt(), path),
    "gpt-508mb-tuned.safetensors": lambda path: save_with_aliases(tuned(), path),
    "gpt-508mb-untied.safetensors": lambda path: save_untied(gpt(), path),
    "turned-128mb.safetensors": lambda path: save_turned(path, 4096),
    "gpt-1gb.safetensors": lambda path: save_with_aliases(gpt().float(), path),
    **{f"sparse-{gb}gb.safetensors": partial(save_sparse, numel=gb << 28) for gb in (1, 10, 100)},
    "llama-250mb.gguf": save_gguf,
    "llama-250mb.safetensors": lambda path: save_file({name: torch.from_numpy(v) for name, v in llama()}, path),
    "moe-90k.pt": lambda path: torch.save(moe(), path),
    "moe-90k.safetensors": lambda path: save_file(moe(), path, metadata={"format": "pt"}),
}


def make(name: str) -> None:
    """Write beside the target and rename: an interrupted run leaves no half file to be taken for whole."""
    target = DATA / name
    if target.exists():
        return
    unfinished = target.with_name(f"partial-{name}")
    FILES[name](unfinished)
    unfinished.replace(target)
    print(f"{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    DATA.mkdir(parents=True, exist_ok=True)
    for file_name in FILES:
        make(file_name)
