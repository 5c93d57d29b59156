"""The second labelled set: which sentences of the package it takes, and their labels."""

from __future__ import annotations

import io
import sys
import tarfile

from conftest import ROOT
from helpers.data import read_labelled

sys.path.insert(0, str(ROOT / "notebooks" / "tools"))

import second_task

LINES = {
    "tweets": "1\t2.5\tSo lucky, really.\n2\t-0.5\tMeh, says \u201che\u201d.\n3\t0.4\tNothing to say.\n",
    "amazonReviewSnippets": '1_1\t-3.1\tIt broke; "never again".\n',
    "nytEditorialSnippets": "1_1\t0.5\tA wise law.\n",
    "movieReviewSnippets": "1\t3.0\tA film.\n",
}


def packed(files):
    """A gzipped archive of these files, in bytes."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return target.getvalue()


def test_clear_opinions_that_are_not_of_films(tmp_path):
    inner = packed({f"hutto/{name}_GroundTruth.txt": text.encode() for name, text in LINES.items()})
    package, file = tmp_path / "package.tar.gz", tmp_path / "made" / "sentences.csv"
    package.write_bytes(packed({f"vader/{second_task.INNER}": inner, "vader/setup.py": b""}))
    assert second_task.write(package, file) == 4
    found = read_labelled(file, "text", "label")
    names = found.features["label"].names
    assert dict(zip(found["text"], (names[label] for label in found["label"]), strict=True)) == {
        "So lucky, really.": "positive",
        "Meh, says \u201che\u201d.": "negative",
        'It broke; "never again".': "negative",
        "A wise law.": "positive",
    }
