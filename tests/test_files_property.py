"""Texts written by `csv`, pandas, `json` and pyarrow in every dialect and encoding are read back equal, or refused."""

import bz2
import csv
import gzip
import io
import json
import lzma
import tempfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from helpers.files.table import open_file

EXAMPLES = pytest.mark.parametrize("examples", [200, pytest.param(2000, marks=pytest.mark.slow)])
PACKED = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}
AWKWARD = [
    ",",
    ";",
    "\t",
    '"',
    '""',
    "'",
    "\\",
    "\n",
    "\r\n",
    "\r",
    " ",
    "  ",
    "#",
    "=",
    "0",
    "NA",
]
ANY = [*AWKWARD, "\u2028", "\x85", "\0", "😀", "Ёж", "été", "字", "word", "two words", "ა", "\ufeff"]
CYRILLIC = [*AWKWARD, " зима ", " снег ", " и ", " город ", " Река ", " Ёлка ", " — ", " «так» ", " word "]
LATIN = [*AWKWARD, " été ", " déjà ", " à ", " Straße ", " über ", " mañana ", " — ", " «oui» ", " word "]
ALPHABETS = {"utf-8": ANY, "utf-8-sig": ANY, "utf-16": ANY, "cp1251": CYRILLIC, "cp1252": LATIN}


@st.composite
def texts_in_an_encoding(draw, encodings=tuple(ALPHABETS)):
    encoding = draw(st.sampled_from(encodings))
    pieces = st.lists(st.sampled_from(ALPHABETS[encoding]), max_size=6)
    texts = draw(st.lists(pieces.map("".join), min_size=1, max_size=12))
    if texts[0].startswith("\ufeff"):
        texts[0] = texts[0].lstrip("\ufeff")  # at the beginning of a file it is the byte order mark
    return encoding, texts


@st.composite
def csv_files(draw):
    """(content, ending, text column, texts, whether nothing in the file is a reason to refuse it)."""
    encoding, texts = draw(texts_in_an_encoding())
    separator, end = draw(st.sampled_from(",;\t")), draw(st.sampled_from(["\n", "\r\n", "\r"]))
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]))
    named, width = draw(st.booleans()), draw(st.integers(1, 3))
    place = draw(st.integers(0, width - 1))
    columns = [[str(row) for row in range(len(texts))] for _ in range(width)]
    columns[place] = texts
    names = [f"column {number}" for number in range(width)]
    names[place] = "text"
    rows = [list(row) for row in zip(*columns, strict=True)]
    if draw(st.booleans()):
        written = [_by_csv(row, separator, quoting, end) for row in ([names] if named else []) + rows]
        lines = []
        for line in written:
            lines += [end] * draw(st.integers(0, 2)) + [line]
        content = "".join(lines) + end * draw(st.integers(0, 2))
    else:
        options = {"sep": separator, "quoting": quoting, "lineterminator": end, "header": named}
        index = draw(st.booleans())
        content = pd.DataFrame(rows, columns=names).to_csv(index=index, **options)
        place += index
    ending = draw(st.sampled_from([".csv", ".tsv"] if separator == "\t" else [".csv"]))
    harmless = named and encoding.startswith("utf") and not any(set(text) & set("\0\r") for text in texts)
    harmless &= end != "\r" or not any("\n" in text for text in texts)
    return content.encode(encoding), ending, "text" if named else place, texts, harmless


def _by_csv(row, separator, quoting, end):
    written = io.StringIO(newline="")
    csv.writer(written, delimiter=separator, quoting=quoting, lineterminator=end).writerow(row)
    return written.getvalue()


def read(content, ending, packed, field):
    """The texts, or None where the file is refused by its name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"some{ending}{packed}"
        path.write_bytes(PACKED[packed](content))
        try:
            return [text for (text,) in open_file(path, {"TEXT_FIELD": field})[1]()]
        except ValueError as error:
            if not str(error).startswith(f"{path}: "):
                raise
            return None


def run(examples, strategy, check):
    options = {"deadline": None, "database": None, "derandomize": examples == 200}
    settings(max_examples=examples, **options)(given(strategy, st.sampled_from(list(PACKED)))(check))()


@EXAMPLES
def test_csv_is_read_back_equal_or_refused(examples):
    def check(file, packed):
        content, ending, field, texts, harmless = file
        found = read(content, ending, packed, field)
        event("refused" if found is None else "read")
        if found is None:
            assert not harmless or not any(text.strip() for text in texts)
            return
        # A carriage return that ends a row without quotes is part of the row's end, and a blank line is no row.
        found, texts = ([text.removesuffix("\r") for text in each if text.strip()] for each in (found, texts))
        assert found == texts

    run(examples, csv_files(), check)


@EXAMPLES
def test_plain_text_is_read_back_equal_or_refused(examples):
    def check(file, packed):
        encoding, texts = file
        texts = [text.replace("\r", "").replace("\n", "") for text in texts]
        content = "".join(f"{text}\n" for text in texts).encode(encoding)
        found = read(content, ".txt", packed, "text")
        if found is None:
            assert "\0" in content.decode(encoding) or encoding.startswith("cp") or not any(map(str.strip, texts))
        else:
            assert found == texts

    run(examples, texts_in_an_encoding(), check)


@EXAMPLES
def test_json_lines_are_read_back_equal(examples):
    def check(file, packed):
        encoding, texts = file
        rows = [{"number": number, "text": text} for number, text in enumerate(texts)]
        for lines in (
            [json.dumps(row) for row in rows],
            [json.dumps(row, ensure_ascii=False) for row in rows],
            pd.DataFrame(rows).to_json(orient="records", lines=True, force_ascii=False).split("\n"),
        ):
            assert read("\n\n".join(lines).encode(encoding), ".jsonl", packed, "text") == texts

    run(examples, texts_in_an_encoding(("utf-8", "utf-8-sig")), check)


@EXAMPLES
def test_parquet_is_read_back_equal(examples):
    def check(file, packed):
        texts = file[1]
        table = pa.table({"number": range(len(texts)), "text": texts})
        for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
            written = io.BytesIO()
            column = table["text"].cast(kind)
            pq.write_table(table.set_column(1, "text", column), written, row_group_size=3)
            assert read(written.getvalue(), ".parquet", "", "text") == texts

    run(examples, texts_in_an_encoding(), check)
