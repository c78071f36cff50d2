"""Header tier: the elements of a tensor into a new file, from wherever they lie, a piece at a time.

What lies in order and keeps its type is copied by the kernel, or through one buffer; the rest, what lies by strides,
is big-endian or is cast, by the values tier, which is asked for by its name. Memory is that of a piece.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import IO, Any

from paramctl.checkpoint import Param
from paramctl.contents import Window
from paramctl.dtypes import DType
from paramctl.errors import MissingLibraryError
from paramctl.formats import copying
from paramctl.storages import Blob

CASTING = "paramctl.values.casting"
PIECE_NBYTES = 1 << 20
_Key = tuple[int, int, tuple[int, ...], tuple[int, ...], str, str]
_COPIED_NBYTES = 1 << 18  # from here on the kernel's copying is worth a call


class Sink:
    """A new file, written from its first byte to its last."""

    def __init__(self, file: IO[bytes]) -> None:
        file.flush()
        self.descriptor = file.fileno()
        self.at = 0
        self._held = bytearray()

    def write(self, data: Any) -> None:
        """Put bytes at the end; small ones are gathered."""
        if len(data) + len(self._held) > PIECE_NBYTES:
            self.flush()
            copying.write_at(self.descriptor, self.at, data)
        else:
            self._held += data
        self.at += len(data)

    def flush(self) -> None:
        """Everything is in the file after this."""
        if self._held:
            copying.write_at(self.descriptor, self.at - len(self._held), self._held)
            self._held = bytearray()

    def copy(self, source: int, offset: int, nbytes: int) -> bool:
        """Bytes of another file by the kernel; False where it cannot copy all, and all are still to come."""
        self.flush()
        if copying.copied_by_kernel(source, self.descriptor, nbytes=nbytes, begin=offset, at=self.at) < nbytes:
            return False
        self.at += nbytes
        return True


class Pourer:
    """Elements on their way into a new file. `overflowed` counts, by name, the numbers that a cast did not reach.

    Args:
        window: through which they are read.
        is_verified: whether `poured` will be asked for.
    """

    def __init__(self, window: Window, *, is_verified: bool = False) -> None:
        self.window = window
        self.is_verified = is_verified
        self.overflowed: dict[str, int] = {}
        self._poured: dict[_Key, tuple[Blob, int]] = {}

    def pour(self, blob: Blob, sink: Sink) -> None:
        """The elements in row-major order, little-endian, at the end of what was written.

        Raises:
            FileError: they cannot be read.
            ParamctlError: there are none, or they are of a kind that cannot be had.
        """
        param = blob.param
        if blob.nbytes >= _COPIED_NBYTES and lies_as_written(blob) and _is_one_range(param):
            start, end = _range(param)
            extent = param.storage.extents[0]
            if sink.copy(self.window.descriptor(extent.path), extent.offset + start, end - start):
                self.window.tell(end - start)
                return
        for piece in self.pieces(blob):
            sink.write(piece)

    def pieces(self, blob: Blob) -> Iterator[memoryview]:
        """The elements in row-major order, little-endian; each piece is good until the next."""
        found = self._cast(blob) if blob.is_cast else pieces(blob, self.window)
        if not self.is_verified:
            yield from found
            return
        crc = 0
        for piece in found:
            crc = zlib.crc32(piece, crc)
            yield piece
        self._poured[_key(blob)] = blob, crc

    def poured(self, blob: Blob) -> int | None:
        """The CRC-32 of what went through memory, so that to verify it nothing is computed again; else None."""
        return self._poured.get(_key(blob), (None, None))[1]

    def _cast(self, blob: Blob) -> Iterator[memoryview]:
        module = casting()
        caster = module.Caster(blob.dtype)
        yield from module.pieces(blob.param, blob.dtype, self.window, caster=caster)
        if caster.overflowed:
            self.overflowed[blob.param.name] = caster.overflowed


def _key(blob: Blob) -> _Key:
    """What tells a blob from any other as long as its storage is there."""
    param = blob.param
    return id(param.storage), param.storage_offset, param.shape, param.stride, param.dtype.name, blob.dtype.name


def pieces(blob: Blob, window: Window) -> Iterator[memoryview]:
    """The elements in row-major order, little-endian; each piece is good until the next."""
    if not blob.param.numel:
        return iter(())
    if lies_as_written(blob):
        return _in_order(blob.param, window)
    made: Iterator[memoryview] = casting().pieces(blob.param, blob.dtype, window)
    return made


def turned(chunks: Iterable[memoryview], dtype: DType) -> Iterator[bytearray]:
    """Little-endian elements as big-endian ones; of complex numbers each half by itself."""
    step = dtype.block_nbytes // (2 if dtype.kind == "complex" else 1)
    for chunk in chunks:
        raw = memoryview(chunk).cast("B")
        made = bytearray(len(raw))
        for at in range(step):
            made[at::step] = raw[step - 1 - at :: step]
        yield made


def _is_one_range(param: Param) -> bool:
    extents = param.storage.extents
    return len(extents) == 1 and not extents[0].packing and not extents[0].box and param.storage.data is None


def lies_as_written(blob: Blob) -> bool:
    """Whether the bytes of the source are those that are to be written."""
    param = blob.param
    is_little = param.storage.byteorder == "little" or param.dtype.block_nbytes == 1
    return param.dtype == blob.dtype and param.is_contiguous and is_little


def _in_order(param: Param, window: Window) -> Iterator[memoryview]:
    start, end = _range(param)
    extents = param.storage.extents
    is_in_pieces = bool(extents) and (len(extents) > 1 or bool(extents[0].box) or extents[0].packing == "torch-save")
    step = max(end - start, 1) if is_in_pieces else PIECE_NBYTES
    for at in range(start, end, step):
        yield window.read(param, at, min(at + step, end))


def _range(param: Param) -> tuple[int, int]:
    """`param.span` of a tensor that lies in order."""
    start = param.storage_offset // param.dtype.block_numel * param.dtype.block_nbytes
    return start, start + param.nbytes


def casting() -> ModuleType:
    """The values tier's half of this.

    Raises:
        MissingLibraryError: numpy is not installed.
    """
    try:
        return importlib.import_module(CASTING)
    except ModuleNotFoundError as error:
        library = (error.name or "").split(".")[0]
        if library not in ("numpy", "ml_dtypes"):
            raise
        raise MissingLibraryError(
            f"casts, strided and big-endian tensors need {library}, which is not installed",
            hint=f"pip install {library}",
        ) from None
