"""Answer with a classifier's ONNX file: `python answer.py FOLDER "A text." "Another."`

Needs onnxruntime, tokenizers and numpy alone: copy this file and the folder to where PyTorch is not installed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

INPUTS = ("input_ids", "attention_mask")
NEEDED = {
    "config.json": ("id2label", "max_position_embeddings", "pad_token_id"),
    "tokenizer_config.json": ("model_max_length", "pad_token"),
}
"""What is read in the files of a folder."""


def read(folder: Path, name: str) -> dict:
    """One of the files of `NEEDED`. ValueError: it is not JSON, or lacks an entry."""
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except ValueError as error:  # of the encoding, or of JSON
        raise ValueError(f"{folder / name} is not JSON: {error}.") from error
    if missing := [key for key in NEEDED[name] if key not in found]:
        raise ValueError(f"{folder / name} lacks {', '.join(missing)}. Notebook 07 writes such a file.")
    return found


class Texts:
    """From texts to what a model reads, by the tokenizer in its folder; a text that is too long is cut.

    Attributes:
        most: how many tokens a text may have, [CLS] and [SEP] included.
    """

    def __init__(self, folder: Path):
        config, settings = (read(folder, name) for name in NEEDED)
        self.most = int(min(settings["model_max_length"], config["max_position_embeddings"]))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(self.most)
        self.tokenizer.enable_padding(pad_id=config["pad_token_id"], pad_token=settings["pad_token"])

    def encode(self, texts: list[str]) -> dict[str, np.ndarray]:
        """``input_ids`` and ``attention_mask``, (texts, length) int64, padded to the longest text."""
        found = self.tokenizer.encode_batch(texts)
        rows = [each.ids for each in found], [each.attention_mask for each in found]
        return {name: np.array(own, dtype=np.int64) for name, own in zip(INPUTS, rows, strict=True)}


class Classifier:
    """A folder's tokenizer, its ONNX model, and the names of the classes.

    Args:
        folder: with config.json, tokenizer.json, tokenizer_config.json and the model.
        file: the model's path in the folder.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the model is none, or not the one that config.json tells of; a file lacks an entry.
    """

    def __init__(self, folder: str | Path, file: str = "onnx/model_quantized.onnx"):
        import onnxruntime  # here: `Texts` needs none

        folder = Path(folder)
        for name in (*NEEDED, "tokenizer.json", file):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder}: {name} is missing. Notebook 07 writes such a folder.")
        config = read(folder, "config.json")
        self.labels = [name for _, name in sorted(config["id2label"].items(), key=lambda pair: int(pair[0]))]
        self.positions = config["max_position_embeddings"]
        self.texts = Texts(folder)
        try:
            self.session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own classes have no other parent
            raise ValueError(f"{file}: onnxruntime cannot read it as an ONNX model ({error}).") from error
        inputs = {each.name for each in self.session.get_inputs()}
        outputs = {each.name: each.shape for each in self.session.get_outputs()}
        if inputs != set(INPUTS) or outputs.get("logits", [])[1:] != [len(self.labels)]:
            raise ValueError(
                f"{file} maps {sorted(inputs)} to {outputs}; a model of the classes {self.labels} maps "
                f"{sorted(INPUTS)} to 'logits' of {len(self.labels)} columns. Is it another folder's?"
            )

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """From what `Texts.encode` gives to logits, (texts, classes) float32.

        Raises:
            ValueError: more tokens than the model has positions.
        """
        length = inputs["input_ids"].shape[1]
        if length > self.positions:
            raise ValueError(f"a text of {length} tokens: the model takes {self.positions}. Cut it, as encode does.")
        return self.session.run(["logits"], inputs)[0]

    def __call__(self, text: str) -> tuple[str, float]:
        """The likeliest class of a text, and its probability."""
        (logits,) = self.run(self.texts.encode([text]))
        shares = np.exp(logits - logits.max())
        return self.labels[int(logits.argmax())], float(shares.max() / shares.sum())


def main() -> int:
    if len(sys.argv) < 3:
        print(__doc__.splitlines()[0], file=sys.stderr)
        return 2
    try:
        classifier = Classifier(sys.argv[1])
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    for text in sys.argv[2:]:
        label, probability = classifier(text)
        print(f"{label} {probability:.3f} {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
