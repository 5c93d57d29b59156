"""Bytes to lines of text: compression and encoding. Knows nothing of rows and columns."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from helpers.files.sources import endings

SAMPLE = 1 << 20
"""Bytes from which encoding and separator are found out."""
LONGEST = 1 << 24
"""Characters in one text at most: more of them are a quote, or a line, that does not end."""
STARTS = {
    b"\x1f\x8b": ".gz",
    b"BZh": ".bz2",
    b"\xfd7zXZ\0": ".xz",
    b"\x28\xb5\x2f\xfd": ".zst",
}
"""What a compressed file begins with."""
OTHERS = {
    b"PAR1": "a Parquet file. Give it a name that ends in .parquet.",
    b"PK\x03\x04": "a zip archive, or a spreadsheet such as .xlsx. Unpack it, or export it as CSV in UTF-8.",
    b"\xd0\xcf\x11\xe0": "a spreadsheet (.xls). Export it as CSV in UTF-8.",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself. Run `git lfs pull`.",
}
MARK = "\udcff"
"""Stands for bytes that do not fit. No encoding decodes to it: it is half of a surrogate pair."""
codecs.register_error("helpers.files.mark", lambda error: (MARK, error.end))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Say which file it is that cannot be opened or unpacked. ValueError."""
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno:
            raise ValueError(f"{path}: the file cannot be read ({error.strerror}).") from error
        raise ValueError(
            f"{path}: not readable as {''.join(endings(path))}: {error}. The file is cut short or damaged: "
            "fetch or make it again."
        ) from error


def _opened(path: Path) -> BinaryIO:
    """A file's bytes, unpacked."""
    compression = endings(path)[1]
    if compression == ".zst":
        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
    return {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(compression, open)(path, "rb")


def sample_of(path: Path) -> bytes:
    """The first `SAMPLE` bytes of a text file, unpacked.

    Raises:
        ValueError: the file is empty, cut short, or something else than its name says.
    """
    with naming(path):
        with path.open("rb") as file:
            head = file.read(32)
        compression, packed = endings(path)[1], [ending for start, ending in STARTS.items() if head.startswith(start)]
        if head and [compression] != (packed or [""]):
            what = f"compressed as {packed[0]}" if packed else f"not compressed as {compression}"
            right = (path.with_suffix("") if compression else path).name + "".join(packed)
            raise ValueError(f"{path}: the file is {what}, which its name does not say. Rename it to {right}.")
        with _opened(path) as file:
            sample = file.read(SAMPLE)
    for start, what in OTHERS.items():
        if sample.startswith(start):
            raise ValueError(f"{path}: the file is {what}")
    if not sample.strip():
        raise ValueError(f"{path}: the file is empty. At least two texts are needed.")
    return sample


def _code_page(sample: bytes) -> str | None:
    """cp1251 or cp1252, if the bytes clearly speak for one of them.

    In Cyrillic, letters beyond ASCII stand together; in Latin scripts, one or two of them stand among ASCII letters.
    """
    runs = re.findall(rb"([A-Za-z]?)([\xa8\xb8\xc0-\xff]+)(?=([A-Za-z]?))", sample)
    cyrillic = sum(len(letters) > 2 for _, letters, _ in runs)
    latin = sum(len(letters) < 3 and bool(before or after) for before, letters, after in runs)
    beyond = len(re.findall(rb"[\x80-\xff]", sample))
    lower = len(re.findall(rb"[\xb8\xe0-\xff]", sample))
    upper = len(re.findall(rb"[\xa8\xc0-\xdf]", sample))
    # Quotation marks, dashes, the ellipsis and the space that does not break have the same bytes in both.
    signs = len(re.findall(rb"[\x84\x85\x91-\x97\xa0\xab\xbb]", sample))
    if lower + upper + signs < 0.9 * beyond:
        return None
    if cyrillic > 4 * latin and lower > upper:
        return "cp1251"
    if latin > 4 * cyrillic or signs == beyond:
        return "cp1252"
    return None


def encoding_of(path: Path, sample: bytes, names: Iterable[str] = ()) -> str:
    """The encoding of a text file, from its first bytes. One that is not marked, nor UTF-8, is printed.

    Args:
        path: the file.
        sample: its first bytes.
        names: columns that its first row has to name; they tell UTF-16 without a byte order mark.

    Raises:
        ValueError: it is none of UTF-8, UTF-16, cp1251 and cp1252, or it is not clear which of the last two.
    """
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if sample.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    wide = ("utf_16_le", "utf_16_be") if b"\0" in sample else ()
    unmarked = [each for each in wide if any(name in sample.decode(each, "replace") for name in names)]
    if unmarked:
        encoding = unmarked[0]
    else:
        try:
            # Not final: the sample may end in the middle of a character.
            codecs.getincrementaldecoder("utf-8")().decode(sample, final=False)
            return "utf-8"
        except UnicodeDecodeError:
            encoding = _code_page(sample)
    if encoding is None:
        raise ValueError(
            f"{path}: the bytes are neither UTF-8 nor UTF-16, and not clearly cp1251 or cp1252. Save the file as UTF-8."
        )
    print(f"{path.name} is not UTF-8: read as {encoding}.")
    return encoding


def decoded(sample: bytes, encoding: str) -> str:
    """A sample as text, without the character in whose middle it may end."""
    return codecs.getincrementaldecoder(encoding)("helpers.files.mark").decode(sample, final=False)


def lines_of(path: Path, encoding: str, end: str = "\n") -> Iterator[str]:
    """A file's lines with their ends, each decoded once.

    Args:
        path: the file.
        encoding: as `encoding_of` gives it.
        end: ``"\\n"`` (a carriage return before it stays), or ``"\\r"``.

    Raises:
        ValueError: the file is cut short or damaged, a line has more than `LONGEST` characters, holds bytes that do
            not fit the encoding, or a NUL, or the last one has another end than the others.
    """
    with naming(path), _opened(path) as file:
        text = io.TextIOWrapper(file, encoding, errors="helpers.files.mark", newline=end)
        number = 0
        while line := text.readline(LONGEST):
            number += 1
            if MARK in line:
                raise ValueError(
                    f"{path}: not readable in {encoding}: line {number} holds other bytes. Save the file as UTF-8 "
                    "throughout, or take out that line."
                )
            if "\0" in line:
                raise ValueError(
                    f"{path}: line {number} holds a NUL, which texts do not have. The file is damaged, or in another "
                    f"encoding than {encoding}. Save it as UTF-8."
                )
            if end == "\n" and line[-1] == "\r":
                raise ValueError(
                    f"{path}: line {number}, the last, ends with a carriage return alone, and others with a line feed. "
                    "End all lines alike, and put quotes around texts that hold line breaks."
                )
            if len(line) == LONGEST and line[-1] != end:
                raise ValueError(f"{path}: line {number} has more than {LONGEST:,} characters. Is it a file of texts?")
            yield line


def line_end(text: str) -> str:
    """What ends the lines of a sample: ``"\\n"``, or, where there is none of these, ``"\\r"``."""
    return "\r" if "\r" in text and "\n" not in text else "\n"
