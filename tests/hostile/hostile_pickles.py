"""Pickles that are bombs, circles, lies and calls, in a torch zip and in a legacy stream.

What would run writes a file called canary, or imports canary_module, which does.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable

from formats.file_builders import glob, state, storage, tensor, text, torch_zip, whole

CANARY = "canary"
IMPORTED = "canary_module"
P2 = b"\x80\x02"
TB = 1 << 40


def short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def beside(*values: bytes) -> bytes:
    """A state dict with a tensor before and behind, so that it is not refused for having none."""
    return state(("a", tensor()), *((f"x{i}", value) for i, value in enumerate(values)), ("b", tensor()))


def shared(value: bytes) -> bytes:
    """A thousand of a value, in a tuple that a list holds 300,000 times."""
    return b"(" + value * 1000 + b"tq\x050(" + b"h\x05" * 300_000 + b"l"


SYSTEM, TOUCH = glob("os", "system"), text(f"touch {CANARY}")
CALL = SYSTEM + TOUCH + b"\x85R"
OPEN = text(f"open({CANARY!r}, 'w').close()")

CALLS: dict[str, bytes] = {
    "global_reduce": CALL,
    "global_alone": SYSTEM,
    "stack_global": short("os") + short("system") + b"\x93" + TOUCH + b"\x85R",
    "stack_global_dotted": short("torch") + short("serialization.os.system") + b"\x93" + TOUCH + b"\x85R",
    "stack_global_of_a_memo": short("os") + b"q\x050h\x05" + short("system") + b"\x93" + TOUCH + b"\x85R",
    "inst": b"(" + TOUCH + b"ios\nsystem\n",
    "obj": b"(" + SYSTEM + TOUCH + b"o",
    "newobj": glob("subprocess", "Popen") + text("touch") + text(CANARY) + b"\x86\x85\x81",
    "newobj_ex": glob("subprocess", "Popen") + b")}" + text("args") + text("touch") + text(CANARY) + b"\x86s\x92",
    "newobj_of_a_function": SYSTEM + TOUCH + b"\x85\x81",
    "build": glob("a", "B") + b")\x81}" + text("__setstate__") + SYSTEM + b"s" + b"b" + TOUCH + b"b"[:0] + b"0" + b"N",
    "build_on_a_class": glob("a", "B") + b"}" + text("__reduce__") + SYSTEM + b"sb",
    "build_on_torch_function": glob("torch._utils", "_rebuild_tensor_v2") + b"}" + text("__code__") + SYSTEM + b"sb",
    "build_dunder_class": glob("a", "B") + b")\x81}" + text("__class__") + CALL + b"sb",
    "build_slots": glob("a", "B") + b")\x81N}" + text("__class__") + SYSTEM + b"s\x86b",
    "exec": glob("builtins", "exec") + OPEN + b"\x85R",
    "eval": glob("builtins", "eval") + OPEN + b"\x85R",
    "eval_of_python_2": glob("__builtin__", "eval") + OPEN + b"\x85R",
    "compile": glob("builtins", "compile") + OPEN + text("x") + text("exec") + b"\x87R",
    "import": glob("builtins", "__import__") + text(IMPORTED) + b"\x85R",
    "import_module": glob("importlib", "import_module") + text(IMPORTED) + b"\x85R",
    "import_by_a_global": glob(IMPORTED, "anything"),
    "import_by_inst": b"(i" + IMPORTED.encode() + b"\nanything\n",
    "import_by_stack_global": short(IMPORTED) + short("a.b") + b"\x93",
    "getattr": glob("builtins", "getattr") + glob("os", "path") + text("os") + b"\x86R" + TOUCH + b"\x85R",
    "partial": glob("functools", "partial") + SYSTEM + TOUCH + b"\x86R)R",
    "map": glob("builtins", "map") + SYSTEM + TOUCH + b"\x85\x86R",
    "list_of_map": glob("builtins", "list") + glob("builtins", "map") + SYSTEM + TOUCH + b"\x85\x86R\x85R",
    "apply": glob("operator", "methodcaller") + text("system") + TOUCH + b"\x86R" + glob("os", "path") + b"\x85R",
    "runpy": glob("runpy", "run_path") + text(f"{IMPORTED}.py") + b"\x85R",
    "open": glob("builtins", "open") + text(CANARY) + text("w") + b"\x86R",
    "codecs_open": glob("_io", "open") + text(CANARY) + text("w") + b"\x86R",
    "codecs_encode_of_a_stranger": glob("_codecs", "encode") + TOUCH + text(IMPORTED) + b"\x86R",
    "torch_load": glob("torch.serialization", "load") + text("m") + b"\x85R",
    "torch_hub": glob("torch.hub", "load_state_dict_from_url") + text("http://127.0.0.1:9/") + b"\x85R",
    "torch_jit": glob("torch.jit._recursive", "exec") + OPEN + b"\x85R",
    "torch_from_file": glob("torch.storage", "UntypedStorage.from_file") + text(CANARY) + b"\x88K\x08\x87R",
    "torch_dunder": glob("torch", "__builtins__") + b"}b",
    "rebuild_from_type": glob("torch._tensor", "_rebuild_from_type_v2")
    + b"("
    + SYSTEM
    + glob("a", "B")
    + TOUCH
    + b"\x85}tR",
    "rebuild_wrapper": glob("torch._utils", "_rebuild_wrapper_subclass") + b"(" + SYSTEM + TOUCH + b"tR",
    "reconstructor": glob("copyreg", "_reconstructor") + SYSTEM + glob("builtins", "object") + b"N\x87R",
    "graph_module": glob("torch.fx.graph_module", "reduce_graph_module")
    + b"}"
    + text("_code")
    + OPEN
    + b"sNN\x87R"[:3]
    + b"\x86R",
    "numpy_dtype": glob("numpy", "dtype") + SYSTEM + TOUCH + b"\x85R\x85R",
    "numpy_object_array": glob("numpy", "load") + text("m") + b"N\x88\x87R",
    "defaultdict_factory": glob("collections", "defaultdict") + SYSTEM + b"\x85R" + text("k") + b"Ns",
    "pickle_in_a_pickle": glob("pickle", "loads") + b"C\x1fcos\nsystem\n(X\x0c\0\0\0touch canarytR." + b"\x85R",
    "yaml": glob("yaml", "unsafe_load") + text(f"!!python/object/apply:os.system ['touch {CANARY}']") + b"\x85R",
    "persistent_id_of_a_call": b"(" + text("storage") + CALL + text("0") + text("cpu") + b"K\x02tQ",
    "persistent_id_that_is_a_call": CALL + b"Q",
    "key_that_is_a_call": b"}" + CALL + b"Ns",
    "shape_that_is_a_call": tensor().replace(b"(" + whole(2) + b"t", CALL, 1),
    "extension_1": b"\x82\x01",
    "extension_2": b"\x83\x01\x01",
    "extension_4": b"\x84\x01\x01\x01\x01",
}


def levels(depth: int, width: int, leaf: bytes) -> bytes:
    """Lists of lists, each level `width` times the one below: width ** depth leaves in a few hundred bytes."""
    made = leaf + b"r\0\x01\0\0"
    for level in range(depth):
        got = b"j" + struct.pack("<I", 256 + level)
        made += b"0](" + got * width + b"er" + struct.pack("<I", 257 + level)
    return made


def level_dicts(depth: int, width: int, leaf: bytes, key: str = "k") -> bytes:
    made = leaf + b"r\0\x01\0\0"
    for level in range(depth):
        got = b"j" + struct.pack("<I", 256 + level)
        pairs = b"".join(text(f"{key}{i}") + got for i in range(width))
        made += b"0}(" + pairs + b"ur" + struct.pack("<I", 257 + level)
    return made


def chain(depth: int, key: str) -> bytes:
    """Dicts in dicts, each with a tensor and all under one key of the memo: names as long as all keys above them."""
    name = b"h\x05"
    of = b"h\x06"
    head = text(key) + b"q\x050" + storage() + b"q\x060"
    nested = b"".join(b"}" + text("w") + tensor(of=of) + b"s" + name for _ in range(depth))
    return head + nested + b"}" + b"s" * depth


BOMBS: dict[str, bytes] = {
    "lists_nested_200_000": b"]" * 200_000 + b"a" * 199_999,
    "lists_side_by_side": b"(" + b"]" * 300_000 + b"l",
    "tuples_nested_200_000": b")" + b"\x85" * 200_000,
    "marks_nested_200_000": b"(" * 200_000 + b"t" * 200_000,
    "dicts_nested_50_000": (b"}" + text("k")) * 50_000 + b"}" + b"s" * 50_000,
    "dicts_nested_around_a_tensor": (b"}" + text("k")) * 5_000 + tensor() + b"s" * 5_000,
    "reduces_nested_50_000": glob("a", "B") + b"q\x050" + b"h\x05" * 50_000 + b")" + b"R\x85" * 50_000,
    "builds_nested_50_000": (glob("a", "B") + b")\x81" + b"}" + text("k")) * 20_000 + b"N" + b"sb" * 20_000,
    "parameters_nested": (glob("torch._utils", "_rebuild_parameter") + b"(") * 2_000 + tensor() + b"\x89NtR" * 2_000,
    "lists_shared_10_to_the_30": levels(30, 10, tensor()),
    "lists_shared_around_nothing": levels(40, 10, b"N"),
    "dicts_shared_10_to_the_30": level_dicts(30, 10, tensor()),
    "dicts_shared_10_to_the_6": level_dicts(6, 10, tensor()),
    "dicts_shared_around_nothing": level_dicts(40, 10, b"N"),
    "dicts_shared_with_long_keys": level_dicts(12, 4, tensor(), "k" * 250),
    "tuples_shared_2_to_the_60": b")" + b"2\x86" * 60,
    "tuples_shared_as_a_key": b"})" + b"2\x86" * 60 + b"Ns",
    "tuples_shared_in_a_set": b"\x8f()" + b"2\x86" * 60 + b"\x90",
    "frozensets_shared": b"()\x91" + b"q\x050(h\x05h\x05\x91" * 60,
    "arguments_shared": glob("a", "B") + b"q\x05)R" + b"q\x060h\x05h\x06h\x06\x86R" * 60,
    "states_shared": glob("a", "B") + b")\x81q\x06" + b"0" + (glob("a", "C") + b")\x81h\x06h\x06\x86bq\x06" + b"0") * 60 + b"h\x06",
    "names_of_long_keys_in_long_keys": chain(400, "k" * 100_000),
    "names_of_long_keys": chain(100, "k" * 1_000_000),
    "memo_bomb_long_binput": b"}r\xff\xff\xff\x7f",
    "memo_bomb_put": b"}p999999999\n",
    "memo_bomb_put_of_10_000_digits": b"}p" + b"9" * 10_000 + b"\n",
    "memo_of_100_000": b"}" + b"".join(b"r" + struct.pack("<I", i) for i in range(100_000)),
    "memoize_200_000": b"}" + b"\x94" * 200_000,
    "frame_of_2_60": b"\x95" + struct.pack("<Q", 1 << 60) + b"}",
    "frame_of_zero": b"\x95" + bytes(8) + b"}",
    "frames_in_frames": b"\x95" + struct.pack("<Q", 9) * 1 + b"\x95" + struct.pack("<Q", 1) + b"}",
    "text_of_2_31": b"X\xff\xff\xff\x7fabc",
    "text_of_2_60": b"\x8d" + struct.pack("<Q", 1 << 60),
    "text_of_2_64": b"\x8d" + b"\xff" * 8,
    "bytes_of_2_32": b"B\xff\xff\xff\xff",
    "bytes_of_2_60": b"\x8e" + struct.pack("<Q", 1 << 60),
    "bytearray_of_2_60": b"\x96" + struct.pack("<Q", 1 << 60),
    "bytearray_of_2_64": b"\x96" + b"\xff" * 8,
    "string_of_python_2_negative": b"T\xff\xff\xff\xff",
    "long4_negative": b"\x8b\xff\xff\xff\xff",
    "long4_of_2_30": b"\x8b\0\0\0\x40",
    "long4_of_100_000_bytes": b"\x8b" + struct.pack("<I", 100_000) + b"\x7f" * 100_000,
    "int_of_100_000_digits": b"I" + b"9" * 100_000 + b"\n",
    "long_of_100_000_digits": b"L" + b"9" * 100_000 + b"L\n",
    "float_of_100_000_digits": b"F" + b"9" * 100_000 + b"\n",
    "float_nan": b"Fnan\n",
    "key_of_a_million_bits": b"}\x8b" + struct.pack("<I", 125_000) + b"\x7f" * 125_000 + b"Ns",
    "integer_of_4_300_digits_shown": b"\x8b" + struct.pack("<I", 3_000) + b"\x7f" * 3_000,
    "unicode_escapes": b"V" + b"\\ud800\\u202e\\x1b" * 100 + b"\n",
    "string_unquoted": b"Sabc\n",
    "string_bad_escape": b"S'\\x'\n",
    "list_of_a_billion_by_call": glob("builtins", "list") + glob("builtins", "range") + b"J\0\xca\x9a\x3b\x85R\x85R",
    "bytes_of_a_billion_by_call": glob("builtins", "bytes") + b"J\0\xca\x9a\x3b\x85R",
    "bytearray_of_a_billion_by_call": glob("builtins", "bytearray") + b"J\0\xca\x9a\x3b\x85R",
    "text_times_a_billion": glob("operator", "mul") + text("x" * 100) + b"J\0\xca\x9a\x3b\x86R",
    "sets_copied_quadratically": b"(" + b"K\x01" * 20_000 + b"lq\x050" + b"(" + (glob("builtins", "set") + b"h\x05\x85R") * 2_000 + b"l",
    "lists_copied_quadratically": b"(" + b"K\x01" * 20_000 + b"lq\x050" + b"(" + (glob("builtins", "list") + b"h\x05\x85R") * 2_000 + b"l",
    "dicts_copied_quadratically": b"}" + b"".join(b"M" + struct.pack("<H", i) + b"Ns" for i in range(9_000)) + b"q\x050("
    + (glob("collections", "OrderedDict") + b"h\x05\x85R") * 2_000 + b"l",
    "encodes_copied": text("x" * 100_000) + b"q\x050(" + (glob("_codecs", "encode") + b"h\x05" + text("latin1") + b"\x86R") * 2_000 + b"l",
    "calls_of_calls_40_000": glob("a", "B") + b")R" * 40_000,
    "integers_shared_300_000_times": shared(b"K\x01"),
    "lists_shared_300_000_times": shared(b"]"),
    "lists_of_two_shared_300_000_times": shared(b"](NNe"),
    "tensors_shared_300_000_times": shared(tensor()),
    "objects_shared_300_000_times": shared(glob("a", "B") + b")\x81"),
    "sizes_copied": b"(" + b"K\x01" * 900 + b"tq\x050(" + (glob("torch", "Size") + b"h\x05\x85R") * 5_000 + b"l",
    "hash_collisions": b"}" + b"".join(whole(i * ((1 << 61) - 1)) + b"Ns" for i in range(1, 4_000)),
}  # fmt: skip

CYCLES: dict[str, bytes] = {
    "list_in_itself": b"]q\x05h\x05a",
    "dict_in_itself": b"}q\x05" + text("k") + b"h\x05s",
    "dict_in_itself_beside_a_tensor": b"}q\x05" + text("k") + b"h\x05s" + text("w") + tensor() + b"s",
    "dicts_in_each_other": b"}q\x05}q\x06" + text("a") + b"h\x05s" + b"0h\x05" + text("b") + b"h\x06s" + b"\x86",
    "tuple_around_its_list": b"]q\x05h\x05\x85ah\x05\x85",
    "ordered_dict_in_itself": glob("collections", "OrderedDict") + b")Rq\x05" + text("k") + b"h\x05s",
    "object_in_its_state": glob("a", "B") + b")\x81q\x05}" + text("k") + b"h\x05sb",
    "object_that_is_its_state": glob("a", "B") + b")\x81q\x05h\x05b",
    "object_state_dict_of_itself": glob("a", "B") + b")\x81q\x05}q\x06" + text("__dict__") + b"h\x06sb",
    "module_in_its_modules": glob("torch.nn", "Linear") + b")\x81q\x05}" + text("_modules") + b"}" + text("m") + b"h\x05ssb",
    "module_of_parameters_in_itself": glob("torch.nn", "Linear") + b")\x81q\x05}q\x06" + text("_parameters") + b"h\x06s" + text("_modules") + b"h\x06sb",
    "class_with_itself_as_argument": glob("a", "B") + b"q\x05h\x05\x85R",
    "set_in_itself": b"\x8fq\x05(h\x05\x90",
    "parameter_of_itself": glob("torch._utils", "_rebuild_parameter") + b"]q\x05h\x05\x89N\x87R",
    "shape_that_holds_itself": tensor().replace(b"(" + whole(2) + b"t", b"]q\x05h\x05a", 1),
    "array_of_itself": glob("numpy.core.multiarray", "_reconstruct") + b")Rq\x05(K\x01h\x05h\x05h\x05h\x05tb",
    "persistent_id_of_itself": b"]q\x05h\x05aQ",
}  # fmt: skip

TYPE_CONFUSION: dict[str, bytes] = {
    "append_to_a_text": text("a") + b"Na",
    "append_to_a_tensor": tensor() + b"Na",
    "appends_to_a_dict": b"}(NNe",
    "setitem_on_a_list": b"]NNs",
    "setitem_on_a_tensor": tensor() + b"NNs",
    "setitem_of_a_list_key": b"}]Ns",
    "setitems_of_an_odd_number": b"}(Nu",
    "setitems_of_three": b"}(NNNu",
    "additems_to_a_dict": b"}(N\x90",
    "build_on_none": b"N}b",
    "build_on_a_number": b"K\x01}" + text("a") + b"Nsb",
    "build_on_a_tensor": tensor() + b"}" + text("a") + b"Nsb",
    "build_on_a_tensor_of_bytes": tensor() + b"C\x01ab",
    "build_on_an_ordered_dict": glob("collections", "OrderedDict") + b")R}" + text("clear") + b"Nsb",
    "build_on_a_storage": storage() + b"}" + text("numel") + b"K\x00sb",
    "build_with_numbers_for_names": glob("a", "B") + b")\x81}K\x01Nsb",
    "reduce_of_none": b"N)R",
    "reduce_of_a_text": text("os.system") + TOUCH + b"\x85R",
    "reduce_without_a_tuple": glob("a", "B") + b"NR",
    "reduce_of_a_tensor": tensor() + b")R",
    "reduce_of_a_storage_type": glob("torch", "FloatStorage") + b"K\x02\x85R",
    "newobj_of_none": b"N)\x81",
    "newobj_of_a_storage_type": glob("torch", "FloatStorage") + b")\x81",
    "newobj_of_a_rebuild_function": glob("torch._utils", "_rebuild_tensor_v2") + b")\x81",
    "newobj_ex_without_a_dict": glob("a", "B") + b")N\x92",
    "obj_without_a_class": b"(o",
    "stack_global_of_numbers": b"K\x01K\x02\x93",
    "stack_global_of_one": short("os") + b"\x93",
    "global_of_an_empty_name": glob("", ""),
    "global_of_escape_codes": glob("\x1b[2J", "\u202e\x9b"),
    "global_of_a_megabyte": glob("m" * 500_000, "n" * 500_000) + b")R",
    "global_of_1_000_dots": glob("a" + ".b" * 1_000, "c" + ".d" * 1_000) + b")R",
    "global_not_utf8": b"c\xff\xfe\n\xff\n",
    "pop_beyond_the_stack": b"00000000",
    "pop_mark_without_a_mark": b"1",
    "dup_of_nothing": b"000002",
    "get_of_nothing": b"g999\n",
    "get_of_a_text": b"gabc\n",
    "get_of_a_negative": b"g-1\n",
    "tuple3_of_one": b"0000N\x87",
    "mark_left_open": b"(((",
    "buffer_from_outside": b"\x97",
    "readonly_buffer": b"N\x98",
    "protocol_255": b"\x80\xff",
    "opcode_unknown": b"\xfe",
    "no_value": b"0",
    "rebuild_without_arguments": glob("torch._utils", "_rebuild_tensor_v2") + b")R",
    "rebuild_of_a_hundred_arguments": glob("torch._utils", "_rebuild_tensor_v2") + b"(" + b"N" * 100 + b"tR",
    "rebuild_of_a_tensor": glob("torch._utils", "_rebuild_tensor_v2") + b"(" + tensor() + b"K\0K\x02\x85K\x01\x85\x89NtR",
    "sparse_of_nothing": glob("torch._utils", "_rebuild_sparse_tensor") + b"NN\x86R",
    "sparse_of_lies": glob("torch._utils", "_rebuild_sparse_tensor") + glob("torch.serialization", "_get_layout")
    + text("torch.sparse_coo") + b"\x85R" + tensor() + tensor() + b"K\x02\x85\x87\x86R",
    "quantizer_of_nothing": glob("torch._utils", "_rebuild_qtensor") + b"(" + storage() + b"K\0K\x02\x85K\x01\x85N\x89NtR",
    "nested_of_nothing": glob("torch._utils", "_rebuild_nested_tensor") + b"NNNN"[:1] + b"\x85R",
    "device_of_escape_codes": glob("torch", "device") + text("\x1b[2J") + b"\x85R",
    "meta_tensor_of_terabytes": glob("torch._utils", "_rebuild_meta_tensor_no_storage") + b"(" + glob("torch", "float32")
    + whole(TB) + b"\x85K\x01\x85\x89tR",
    "array_of_terabytes": glob("numpy.core.multiarray", "_reconstruct") + b")R(K\x01" + whole(TB) + b"\x85"
    + glob("numpy", "dtype") + text("f4") + b"\x85R\x89C\x04abcdtb",
    "array_of_nothing": glob("numpy._core.multiarray", "_reconstruct") + b")\x81",
    "array_of_a_dtype_of_terabytes": glob("numpy", "dtype") + text("V1099511627776") + b"\x85R",
    "array_of_axes_that_are_none": glob("numpy._core.numeric", "_frombuffer") + b"(C\x08abcdefgh" + glob("numpy", "dtype")
    + text("f4") + b"\x85RK\x02\x85" + text("K") + b"(K\x07K\x07ttR",
}  # fmt: skip


def _of(**fields: object) -> bytes:
    return state(("w", tensor(**fields)))  # type: ignore[arg-type]


GEOMETRY: dict[str, bytes] = {
    "terabyte_in_a_kilobyte": _of(shape=(TB,)),
    "terabyte_of_storage": _of(shape=(TB,), of=storage(numel=TB)),
    "size_2_62": _of(shape=(1 << 62,)),
    "size_2_63": _of(shape=(1 << 63,)),
    "size_2_64_plus_2": _of(shape=((1 << 64) + 2,)),
    "size_of_2_1000": _of(shape=(1 << 1000,)),
    "size_negative": state(("w", tensor().replace(b"(" + whole(2) + b"t", b"(J\xfe\xff\xff\xfft", 1))),
    "stride_negative": state(("w", tensor().replace(b"(" + whole(1) + b"t", b"(J\xff\xff\xff\xfft", 1))),
    "offset_negative": state(("w", tensor().replace(b"Q" + whole(0), b"QJ\xff\xff\xff\xff", 1))),
    "size_that_is_true": state(("w", tensor().replace(b"(" + whole(2) + b"t", b"(\x88t", 1))),
    "size_that_is_a_float": state(("w", tensor().replace(b"(" + whole(2) + b"t", b"(G" + bytes(8) + b"t", 1))),
    "offset_one_too_many": _of(offset=1),
    "offset_2_62": _of(offset=1 << 62),
    "offset_2_63": _of(offset=1 << 63),
    "stride_2_62": _of(stride=(1 << 62,)),
    "stride_wraps_to_0": _of(shape=(3,), stride=(1 << 63,)),
    "strides_that_add_up_beyond": _of(shape=(2, 2, 2), stride=((1 << 62), (1 << 62), (1 << 62))),
    "expanded_view_of_one_element": _of(shape=(1 << 30,), stride=(0,)),
    "expanded_to_2_62": _of(shape=(1 << 62,), stride=(0,)),
    "expanded_to_2_27": _of(shape=(1 << 27,), stride=(0,)),
    "expanded_to_2_20_by_2_20": _of(shape=(1 << 20, 1 << 20), stride=(0, 0)),
    "expanded_to_2_by_2_40_times": _of(shape=(2,) * 40, stride=(0,) * 40),
    "expanded_a_hundred_times_2_20": state(*((f"w{i}", tensor((1 << 20,), (0,))) for i in range(100))),
    "windows_of_one_another": _of(shape=(2, 1 << 30), stride=(1, 0)),
    "expanded_in_its_first_axis": _of(shape=(1 << 28, 2), stride=(0, 1)),
    "empty_of_2_62": _of(shape=(0, 1 << 62), stride=(1, 1)),
    "empty_of_2_80": _of(shape=(TB, TB, 0), stride=(0, 0, 0)),
    "empty_beyond_the_storage": _of(shape=(0,), offset=1 << 40),
    "axes_70": _of(shape=(1,) * 70),
    "axes_1_000": _of(shape=(1,) * 1_000),
    "axes_1_001": _of(shape=(1,) * 1_001),
    "axes_70_of_nothing": _of(shape=(0,) * 70),
    "fewer_strides_than_sizes": _of(shape=(2,), stride=()),
    "more_strides_than_sizes": _of(shape=(), stride=(1, 1)),
    "storage_numel_lies": _of(of=storage(numel=3)),
    "storage_numel_0": _of(of=storage(numel=0)),
    "storage_numel_2_62": _of(of=storage(numel=1 << 62)),
    "storage_numel_2_64": _of(of=storage(numel=1 << 64)),
    "storage_numel_negative": state(("w", tensor(of=storage().replace(whole(2), b"J\xff\xff\xff\xff", 1)))),
    "storage_that_is_not_there": _of(of=storage("7")),
    "storage_of_two_sizes": state(("a", tensor()), ("b", tensor(of=storage(numel=1)))),
    "storage_key_dotdot": _of(of=storage("../../../../etc/passwd")),
    "storage_key_of_the_pickle": _of(of=storage("../data.pkl")),
    "storage_key_of_nul": _of(of=storage("0\0")),
    "storage_key_of_escape_codes": _of(of=storage("\x1b[2J\n")),
    "storage_key_of_a_megabyte": _of(of=storage("k" * (1 << 20))),
    "storage_type_unknown": _of(of=storage(kind=glob("torch", "FancyStorage"))),
    "storage_type_of_a_stranger": _of(of=storage(kind=SYSTEM)),
    "storage_location_of_escape_codes": _of(of=storage(location=text("\x1b[2Jcuda:0\n"))),
    "storage_of_the_wrong_size_of_element": _of(of=storage(kind=glob("torch", "DoubleStorage"))),
    "name_of_escape_codes": state(("\x1b[2J\x1b]0;t\x07\x9b31m", tensor())),
    "name_of_a_lone_surrogate": b"\x80\x02}X\x03\0\0\0\xed\xa0\x80" + tensor() + b"s.",
    "name_not_utf8": b"\x80\x02}X\x02\0\0\0\xff\xfe" + tensor() + b"s.",
    "name_that_is_bytes": b"\x80\x02}C\x03\x1b[2" + tensor() + b"s.",
    "name_that_is_a_tensor": b"\x80\x02}" + tensor() + tensor() + b"s.",
    "name_that_is_none": b"\x80\x02}N" + tensor() + b"s.",
    "name_that_is_nan": b"\x80\x02}G\x7f\xf8\0\0\0\0\0\0" + tensor() + b"s.",
    "name_that_is_a_tuple": b"\x80\x02}K\x01K\x02\x86" + tensor() + b"s.",
    "names_that_become_one": b"\x80\x02}(K\x01" + tensor() + text("1") + tensor() + b"u.",
    "names_with_dots_that_become_one": state(("a.b", tensor()), ("a", b"}" + text("b") + tensor() + b"s")),
    "tensors_20_000_of_one_storage": state(*((f"l.{i}", tensor()) for i in range(20_000))),
    "a_tensor_alone": b"\x80\x02" + tensor() + b".",
    "no_tensor": b"\x80\x02}.",
    "an_integer": b"\x80\x02K\x01.",
}  # fmt: skip


def _framed() -> dict[str, bytes]:
    """Each as it is told: the pickle of a state dict, with two tensors beside what is hostile."""
    found = {f"pickle_call_{key}": beside(value) for key, value in CALLS.items()}
    found |= {f"pickle_bomb_{key}": beside(value) for key, value in BOMBS.items()}
    found |= {f"pickle_cycle_{key}": beside(value) for key, value in CYCLES.items()}
    found |= {f"pickle_type_{key}": beside(value) for key, value in TYPE_CONFUSION.items()}
    return found | {f"tensor_{key}": value for key, value in GEOMETRY.items()}


MAGIC = 0x1950A86A20F9469CFC6C


def legacy(pickled: bytes, keys: object = ("0",), behind: bytes = struct.pack("<q", 2) + bytes(8)) -> bytes:
    """A stream of torch before 1.6."""
    first = b"".join(pickle.dumps(value, 2) for value in (MAGIC, 1001, {"little_endian": True}))
    return first + pickled + pickle.dumps(list(keys) if isinstance(keys, tuple) else keys, 2) + behind


_LEGACY = {
    "pickle_call_global_reduce", "pickle_call_inst", "pickle_call_import_by_a_global",
    "pickle_bomb_lists_nested_200_000", "pickle_bomb_memo_bomb_long_binput", "pickle_bomb_dicts_shared_10_to_the_30",
    "pickle_bomb_text_of_2_60", "pickle_bomb_bytearray_of_2_60", "pickle_cycle_dict_in_itself", "pickle_type_no_value",
    "tensor_terabyte_in_a_kilobyte", "tensor_terabyte_of_storage", "tensor_storage_numel_lies",
    "tensor_storage_numel_2_62", "tensor_expanded_view_of_one_element", "tensor_storage_that_is_not_there",
    "tensor_storage_key_dotdot", "tensor_storage_key_of_a_megabyte", "tensor_name_of_escape_codes",
}  # fmt: skip
FILES: dict[str, Callable[[], bytes]] = {
    key: (lambda pickled=pickled: torch_zip(pickled)) for key, pickled in _framed().items()
}
FILES |= {
    f"legacy_{key}": (lambda pickled=pickled: legacy(pickled)) for key, pickled in _framed().items() if key in _LEGACY
}
GOOD = state(("w", tensor()), ("v", tensor(of=storage("1"))))
FILES |= {
    "legacy_numel_lies": lambda: legacy(state(("w", tensor())), behind=struct.pack("<q", 3) + bytes(8)),
    "legacy_numel_negative": lambda: legacy(state(("w", tensor())), behind=struct.pack("<q", -2) + bytes(8)),
    "legacy_numel_2_62": lambda: legacy(state(("w", tensor())), behind=struct.pack("<q", 1 << 62) + bytes(8)),
    "legacy_no_storages": lambda: legacy(state(("w", tensor())), behind=b""),
    "legacy_key_twice": lambda: legacy(state(("w", tensor())), ("0", "0")),
    "legacy_key_unknown": lambda: legacy(state(("w", tensor())), ("0", "9")),
    "legacy_keys_missing": lambda: legacy(GOOD, ("0",)),
    "legacy_keys_that_are_a_dict": lambda: legacy(GOOD, {"0": 1}),
    "legacy_keys_that_are_none": lambda: legacy(GOOD, None),
    "legacy_keys_of_lists": lambda: legacy(GOOD, ([], [])),
    "legacy_keys_100_000": lambda: legacy(GOOD, tuple(map(str, range(100_000)))),
    "legacy_keys_twice_at_the_end_of_20_000": lambda: legacy(GOOD, (*map(str, range(20_000)), "19999")),
    "legacy_magic_alone": lambda: pickle.dumps(MAGIC, 2),
    "legacy_magic_cut": lambda: pickle.dumps(MAGIC, 2)[:-3],
    "legacy_magic_in_a_list": lambda: pickle.dumps([MAGIC], 2) + legacy(GOOD),
    "legacy_protocol_of_100_000_digits": lambda: pickle.dumps(MAGIC, 2) + pickle.dumps(1 << 300_000, 2),
    "legacy_protocol_text": lambda: pickle.dumps(MAGIC, 2) + pickle.dumps("\x1b[2J", 2),
    "legacy_view_beyond": lambda: legacy(
        state(("w", tensor(of=storage().replace(b"tQ", text("v") + b"K\x01K\x63\x87tQ"))))
    ),
    "legacy_view_negative": lambda: legacy(
        state(("w", tensor(of=storage().replace(b"tQ", text("v") + b"J\xff\xff\xff\xffK\x02\x87tQ"))))
    ),
    "legacy_view_that_is_a_number": lambda: legacy(state(("w", tensor(of=storage().replace(b"tQ", b"K\x07tQ"))))),
    "legacy_trailing_bytes": lambda: legacy(state(("w", tensor()))) + bytes(100),
}
