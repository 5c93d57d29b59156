"""Lay a page with the student of notebook 07 into artifacts/07_compression/demo: `make demo`.

The page answers in the browser, and asks no other machine. It needs two packages of npm, pinned and
checked here; nothing of them is run to install them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMPRESSION = ROOT / "artifacts" / "07_compression"
TARBALLS = ROOT / "artifacts" / "npm"
PAGE = Path(__file__).with_name("demo.html")
PACKAGES = {  # with the sha512 that npm has for it, and what the page needs of it
    "@huggingface/transformers@4.3.2": (
        "V3+dqf3iWlRYJ9I9GreM3zGQd0lAXnnoPeddmkOQYWAEE4l/+Fi6p7tx/qVUJlKQgLXGim2W76rTOzz+eC0i7g==",
        ["dist/transformers.min.js"],
    ),
    "onnxruntime-web@1.31.0-dev.20260914-8d85527a0": (  # the version that transformers.js pins
        "Iy7rtadoBgxS/LLvDr3QW38DB1PNXRnr0GJMcL0TAt7c9qjgVQl83UlGCVyeAnK2InpmW8Uc3PL8XIuqtDeF6g==",
        ["dist/ort-wasm-simd-threaded.asyncify.mjs", "dist/ort-wasm-simd-threaded.asyncify.wasm"],
    ),
}
MODEL = ["config.json", "tokenizer.json", "tokenizer_config.json", "onnx/model_quantized.onnx"]


class DemoError(Exception):
    """What is missing for the page, as a sentence."""


def sha512(file: Path) -> str:
    """Of a file, in base64, as npm writes it."""
    return base64.b64encode(hashlib.sha512(file.read_bytes()).digest()).decode()


def tarball(package: str, expected: str, folder: Path = TARBALLS) -> Path:
    """The package's archive, from `folder` or by `npm pack`, with the `expected` sha512.

    Raises:
        DemoError: npm is not there, gives nothing, or gives something else.
    """
    name, version = package.rsplit("@", 1)
    file = folder / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not file.is_file():
        if shutil.which("npm") is None:
            raise DemoError(f"npm is missing, which fetches {package}. Install Node.js.")
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--ignore-scripts", f"--pack-destination={folder}", package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not file.is_file():
            raise DemoError(f"npm pack {package} failed:\n{done.stderr[-2000:]}")
    if (found := sha512(file)) != expected:
        raise DemoError(f"{file}: its sha512 is {found}, not {expected}. Delete it, and look why.")
    return file


def lay(model: Path, target: Path, tarballs: Path = TARBALLS) -> None:
    """Put the page, the libraries and a model's folder, as notebook 07 writes it, into `target`.

    Raises:
        DemoError: a file of the model is missing; or see `tarball`.
    """
    missing = [name for name in MODEL if not (model / name).is_file()]
    if missing:
        raise DemoError(f"{model} has no {', '.join(missing)}. Run notebook 07, which writes them.")
    shutil.rmtree(target, ignore_errors=True)
    (target / "dist").mkdir(parents=True)
    for package, (expected, names) in PACKAGES.items():
        with tarfile.open(tarball(package, expected, tarballs)) as archive:
            for name in names:
                with archive.extractfile(f"package/{name}") as read:
                    (target / name).write_bytes(read.read())
    for name in MODEL:
        (target / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(model / name, target / "model" / name)
    shutil.copy(PAGE, target / "index.html")


def main() -> int:
    record = COMPRESSION / "metrics.json"
    try:
        if not record.is_file():
            raise DemoError("There is no student yet: run notebook 07 first (make tutorial).")
        folder = json.loads(record.read_text(encoding="utf-8"))["folder"]
        lay(COMPRESSION / folder, COMPRESSION / "demo")
    except DemoError as error:
        print(error)
        return 1
    where = (COMPRESSION / "demo").relative_to(ROOT)
    print(f"The page is in {where}. Serve it, and open http://localhost:8000:")
    print(f"python3 -m http.server --bind 127.0.0.1 --directory {where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
