"""What the tests share: a tiny teacher, tiny parameters, and one engine a process."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest
import torch
import yaml

import tiny_teacher
from helpers.catalyst_today.engine import Engine
from helpers.data import read_texts
from helpers.models import load_teacher

ROOT = Path(__file__).resolve().parents[1]
matplotlib.use("agg")


def pytest_collection_modifyitems(items):
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    return tiny_teacher.build(tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.fixture
def tiny(tiny_folder):
    """(teacher, tokenizer), new for each test."""
    return load_teacher(tiny_folder)


@pytest.fixture(scope="session")
def sentences():
    return read_texts(tiny_teacher.SENTENCES)


@pytest.fixture
def parameters(tiny_folder, tmp_path):
    """Those of tiny.yaml with fewer steps, the teacher in place and an empty OUTPUT_DIR."""
    values = yaml.safe_load((ROOT / "notebooks" / "parameters" / "tiny.yaml").read_text(encoding="utf-8"))
    values |= {"TEACHER": str(tiny_folder), "OUTPUT_DIR": str(tmp_path / "artifacts")}
    values |= {"TEACHER_STEPS": 8, "MAX_STEPS": 8, "TEMPERATURE": 2.0}
    return values | {"LOSS_WEIGHTS": {"kl": 0.625, "mlm": 0.25, "cosine": 0.125}}


@pytest.fixture
def engine():
    return Engine("no", cpu=True)
