"""Folders that lead astray: indexes, shards, distributed checkpoints, pipes and links."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from formats.file_builders import entry, glob, safetensors, state, tensor, text, torch_zip

INDEX = "model.safetensors.index.json"
A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
ONE, TWO = safetensors({"a": entry()}, bytes(8)), safetensors({"b": entry()}, bytes(8))
Fill = Callable[[Path], object]


def index(owners: Any, **more: Any) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": owners} | more).encode()


def files(**held: bytes) -> Fill:
    def fill(folder: Path) -> None:
        for name, raw in held.items():
            (folder / name).write_bytes(raw)

    return fill


def indexed(raw: bytes, **more: bytes) -> Fill:
    return files(**({INDEX: raw, A: ONE, B: TWO} | more))


def to(target: str) -> Fill:
    """An index that says where the tensor a is."""
    return indexed(index({"a": target}))


def beside(fill: Fill, then: Fill) -> Fill:
    def both(folder: Path) -> None:
        fill(folder)
        then(folder)

    return both


GOOD = index({"a": A, "b": B})
_INDEXES: dict[str, Fill] = {
    "index_escapes_dotdot": to("../x.safetensors"),
    "index_escapes_by_down_and_up": to("sub/../../x.safetensors"),
    "index_escapes_absolute": to("/etc/passwd"),
    "index_escapes_to_a_device": to("/dev/zero"),
    "index_escapes_on_windows": to("..\\x.safetensors"),
    "index_escapes_through_a_link": beside(to("away/passwd"), lambda folder: (folder / "away").symlink_to("/etc")),
    "index_names_a_link_out": beside(to("x"), lambda folder: (folder / "x").symlink_to("/etc/passwd")),
    "index_names_a_link_to_a_device": beside(to("x"), lambda folder: (folder / "x").symlink_to("/dev/zero")),
    "index_names_a_link_to_itself": beside(to("x"), lambda folder: (folder / "x").symlink_to("x")),
    "index_names_a_pipe": beside(to("x"), lambda folder: os.mkfifo(folder / "x")),
    "index_names_a_folder": beside(to("x"), lambda folder: (folder / "x").mkdir()),
    "index_names_itself": to(INDEX),
    "index_names_the_folder": to("."),
    "index_names_nothing": to(""),
    "index_names_nul": to("x\0"),
    "index_names_escape_codes": to("\x1b[2J\n"),
    "index_names_a_surrogate": indexed(b'{"weight_map":{"a":"\\ud800"}}'),
    "index_names_a_megabyte": to("x" * (1 << 20)),
    "index_names_what_is_missing": to("x.safetensors"),
    "index_of_numbers": indexed(index({"a": 3})),
    "index_of_lists": indexed(index({"a": [A]})),
    "index_map_a_list": indexed(index(["a"])),
    "index_map_empty": indexed(index({})),
    "index_map_null": indexed(index(None)),
    "index_empty": indexed(b""),
    "index_not_json": indexed(b"{"),
    "index_not_utf8": indexed(b'{"weight_map":{"\xff":"x"}}'),
    "index_nested": indexed(b'{"weight_map":' * 100_000),
    "index_name_twice": indexed(b'{"weight_map":{"a":"%s","a":"%s"}}' % (A.encode(), B.encode())),
    "index_total_size_lies": indexed(index({"a": A, "b": B}, metadata={"total_size": 1 << 70})),
    "index_total_size_negative": indexed(index({"a": A, "b": B}, metadata={"total_size": -1})),
    "index_total_size_a_text": indexed(index({"a": A, "b": B}, metadata={"total_size": "\x1b[2J"})),
    "index_metadata_a_list": indexed(index({"a": A, "b": B}, metadata=[1])),
    "index_of_names_that_are_not_there": indexed(index({"x\x1b[2J": A, "b": B})),
    "index_swapped": indexed(index({"a": B, "b": A})),
    "index_of_50_000_names": indexed(index({f"n{i}": A for i in range(50_000)})),
    "index_of_5_000_shards": indexed(index({f"n{i}": f"x{i}.safetensors" for i in range(5_000)})),
    "shard_empty": indexed(GOOD, **{B: b""}),
    "shard_cut": indexed(GOOD, **{B: TWO[:-1]}),
    "shard_of_another_format": indexed(GOOD, **{B: torch_zip(state(("b", tensor())))}),
    "shard_that_calls": indexed(GOOD, **{B: torch_zip(state(("b", glob("os", "system") + text("touch canary") + b"\x85R")))}),
    "shard_that_is_an_index": indexed(GOOD, **{B: GOOD}),
    "shard_missing": files(**{INDEX: GOOD, A: ONE}),
    "shards_with_one_name": indexed(GOOD, **{B: ONE}),
    "shards_without_an_index_of_2_31": files(**{"model-00001-of-2147483648.safetensors": ONE}),
    "shards_without_an_index_of_many_digits": files(**{f"model-{'0' * 90}1-of-{'9' * 90}.safetensors": ONE}),
    "shards_without_an_index_number_0": files(**{"model-00000-of-00000.safetensors": ONE}),
    "config_not_json": indexed(GOOD, **{"config.json": b"{"}),
    "config_nested": indexed(GOOD, **{"config.json": b'{"a":' * 100_000}),
    "config_of_wrong_types": indexed(GOOD, **{"config.json": b'{"tie_word_embeddings":[1],"architectures":{"a":[]},"model_type":7}'}),
    "config_a_pipe": beside(indexed(GOOD), lambda folder: os.mkfifo(folder / "config.json")),
    "folder_empty": lambda _: None,
    "folder_of_a_pipe": lambda folder: os.mkfifo(folder / "model.safetensors"),
    "folder_of_a_link_to_itself": lambda folder: (folder / "model.safetensors").symlink_to("model.safetensors"),
    "folder_of_a_link_to_a_device": lambda folder: (folder / "model.safetensors").symlink_to("/dev/zero"),
    "folder_of_a_link_up": lambda folder: (folder / "m").symlink_to(".."),
    "folder_of_names_of_escape_codes": files(**{"\x1b[2J\n.safetensors": ONE, "\x9b.pt": TWO}),
    "folder_of_a_name_not_utf8": lambda folder: Path(os.fsdecode(bytes(folder) + b"/\xff\xfe.safetensors")).write_bytes(ONE),
    "folder_of_2_000_models": files(**{f"m{i}.safetensors": ONE for i in range(2_000)}),
    "folder_of_200_levels": lambda folder: Path(folder, *["d"] * 200).mkdir(parents=True),
}  # fmt: skip


def dcp(change: Callable[[Metadata], Any] = lambda _: None) -> Fill:
    """A distributed checkpoint of one tensor in two pieces, with its metadata changed."""

    def fill(folder: Path) -> None:
        metadata = Metadata({}, {}, {}, version="1.0.0")
        chunks = []
        with (folder / "__0_0.distcp").open("wb") as stream:
            for row in (0, 2):
                at = stream.tell()
                torch.save(torch.zeros(2, 2), stream)
                chunks.append(ChunkStorageMetadata(torch.Size((row, 0)), torch.Size((2, 2))))
                metadata.storage_data[MetadataIndex("w", (row, 0))] = _StorageInfo(
                    "__0_0.distcp", at, stream.tell() - at
                )
        properties = TensorProperties.create_from_tensor(torch.zeros(4, 2))
        metadata.state_dict_metadata["w"] = TensorStorageMetadata(properties, torch.Size((4, 2)), chunks)
        metadata.planner_data["w"] = ("w",)
        changed = change(metadata)
        (folder / ".metadata").write_bytes(changed if isinstance(changed, bytes) else pickle.dumps(metadata))

    return fill


def region(**fields: Any) -> Fill:
    return dcp(lambda metadata: next(iter(metadata.storage_data.values())).__dict__.update(fields))


def whole(**fields: Any) -> Fill:
    return dcp(lambda metadata: metadata.state_dict_metadata["w"].__dict__.update(fields))


def chunk(offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Fill:
    def change(metadata: Metadata) -> None:
        metadata.state_dict_metadata["w"].chunks[1].__dict__.update(offsets=offsets, sizes=sizes)
        second = list(metadata.storage_data.values())[1]
        metadata.storage_data[MetadataIndex("w", offsets)] = second

    return dcp(change)


def _flip(seed: int) -> Fill:
    def change(metadata: Metadata) -> bytes:
        import hostile_damage

        return hostile_damage.flipped(pickle.dumps(metadata), seed)

    return dcp(change)


def _cut(part: int) -> Fill:
    return dcp(lambda metadata: pickle.dumps(metadata)[: len(pickle.dumps(metadata)) * part // 12])


CALL = b"\x80\x02" + glob("os", "system") + text("touch canary") + b"\x85R."
_DCP: dict[str, Fill] = {
    "dcp_whole": dcp(),
    "dcp_region_beyond_file": region(length=1 << 40),
    "dcp_region_offset_beyond_file": region(offset=1 << 62),
    "dcp_region_offset_of_many_digits": region(offset=1 << 20_000),
    "dcp_region_negative": region(offset=-1),
    "dcp_region_a_float": region(offset=0.0),
    "dcp_region_empty": region(length=0),
    "dcp_region_one_byte_short": region(length=100),
    "dcp_region_escapes_dotdot": region(relative_path="../x"),
    "dcp_region_escapes_absolute": region(relative_path="/etc/passwd"),
    "dcp_region_of_a_device": region(relative_path="/dev/zero"),
    "dcp_region_of_the_metadata": region(relative_path=".metadata"),
    "dcp_region_of_nul": region(relative_path="x\0"),
    "dcp_region_of_escape_codes": region(relative_path="\x1b[2J\n"),
    "dcp_region_of_a_number": region(relative_path=7),
    "dcp_region_of_a_surrogate": region(relative_path="\ud800"),
    "dcp_region_of_a_folder": region(relative_path="."),
    "dcp_region_transformed": region(transform_descriptors=["stream.zstd/1"]),
    "dcp_size_of_terabytes": whole(size=(1 << 40, 2)),
    "dcp_size_2_124": whole(size=(1 << 62, 1 << 62)),
    "dcp_size_negative": whole(size=(-4, 2)),
    "dcp_size_a_number": whole(size=4),
    "dcp_size_of_other_axes": whole(size=(8,)),
    "dcp_size_of_1_000_axes": whole(size=(1,) * 1_000),
    "dcp_no_chunks": whole(chunks=[]),
    "dcp_chunks_a_number": whole(chunks=7),
    "dcp_chunks_of_themselves": dcp(lambda m: m.state_dict_metadata["w"].chunks.append(m.state_dict_metadata["w"].chunks)),
    "dcp_no_properties": whole(properties=None),
    "dcp_chunk_that_overlaps": chunk((1, 0), (2, 2)),
    "dcp_chunk_that_leaves_a_hole": chunk((3, 0), (1, 2)),
    "dcp_chunk_beyond_the_tensor": chunk((2, 0), (3, 2)),
    "dcp_chunk_negative": chunk((2, 0), (-2, 2)),
    "dcp_chunk_of_terabytes": chunk((2, 0), (1 << 40, 2)),
    "dcp_chunk_of_other_axes": chunk((2,), (2,)),
    "dcp_entry_of_something_else": dcp(lambda m: m.state_dict_metadata.update(w=3)),
    "dcp_name_with_escape_codes": dcp(lambda m: m.state_dict_metadata.update({"\x1b[2J\n": m.state_dict_metadata["w"]})),
    "dcp_name_a_number": dcp(lambda m: m.state_dict_metadata.update({3: 3})),
    "dcp_paths_of_escape_codes": dcp(lambda m: m.planner_data.update(w=("\x1b[2J", "\x9b"))),
    "dcp_paths_of_numbers": dcp(lambda m: m.planner_data.update(w=(1 << 80, None))),
    "dcp_paths_of_10_000": dcp(lambda m: m.planner_data.update(w=("a",) * 10_000)),
    "dcp_no_regions": dcp(lambda m: setattr(m, "storage_data", None)),
    "dcp_metadata_empty": dcp(lambda _: b""),
    "dcp_metadata_that_calls": dcp(lambda _: CALL),
    "dcp_metadata_nested": dcp(lambda _: b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."),
    "dcp_metadata_of_something_else": dcp(lambda _: pickle.dumps({"a": 1})),
    "dcp_metadata_a_number": dcp(lambda _: pickle.dumps(1)),
    "dcp_metadata_a_pipe": lambda folder: os.mkfifo(folder / ".metadata"),
    "dcp_metadata_a_folder": lambda folder: (folder / ".metadata").mkdir(),
    "dcp_file_missing": beside(dcp(), lambda folder: (folder / "__0_0.distcp").unlink()),
    "dcp_file_empty": beside(dcp(), lambda folder: (folder / "__0_0.distcp").write_bytes(b"")),
    "dcp_file_of_zeros": beside(dcp(), lambda folder: (folder / "__0_0.distcp").write_bytes(bytes(9_999))),
    "dcp_file_a_link_to_a_device": beside(
        dcp(), lambda folder: ((folder / "__0_0.distcp").unlink(), (folder / "__0_0.distcp").symlink_to("/dev/zero"))
    ),
    "dcp_file_a_pipe": beside(
        dcp(), lambda folder: ((folder / "__0_0.distcp").unlink(), os.mkfifo(folder / "__0_0.distcp"))
    ),
    "dcp_file_without_its_metadata": files(**{"__0_0.distcp": b"PK\x03\x04"}),
}  # fmt: skip
FOLDERS: dict[str, Fill] = _INDEXES | _DCP
FOLDERS |= {f"dcp_metadata_flipped_{seed}": _flip(seed) for seed in range(12)}
FOLDERS |= {f"dcp_metadata_truncated_at_{part}_of_12": _cut(part) for part in range(1, 12)}
