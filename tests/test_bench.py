"""The benchmark on tiny data: what is compared computes the same, and its page holds what was measured."""

import json
import subprocess
import sys
from functools import partial

import pytest
import torch
import yaml

from conftest import ROOT
from helpers import losses, models
from helpers.catalyst_today.engine import Engine
from helpers.data import masked_lm_loaders, masked_targets

sys.path.insert(0, str(ROOT / "tests" / "bench"))
import report

import contenders
from blocks import Blocks, Products


@pytest.fixture(autouse=True)
def on_the_processor(monkeypatch):
    monkeypatch.setattr(contenders, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(contenders, "Engine", partial(Engine, cpu=True))


@pytest.fixture
def trained(tiny, tmp_path):
    """The folder of a tiny teacher without dropout whose head counts as trained."""
    teacher, tokenizer = tiny
    torch.manual_seed(0)
    teacher.cls.predictions.transform.dense.weight.data += 0.01 * torch.randn(64, 64)
    teacher.config.hidden_dropout_prob = teacher.config.attention_probs_dropout_prob = 0.0
    teacher.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def students_of(names, folder, sentences, steps=3):
    """The student that each contender makes of the same start and batches."""
    students = {}
    for name in names:
        teacher, tokenizer = models.load_teacher(folder)
        student = models.extract_student(teacher, [0, 3])
        loaders = masked_lm_loaders(sentences, tokenizer, max_length=48, batch_size=4, pack=False, steps_per_epoch=40)
        torch.manual_seed(0)
        batches = [batch for batch, _ in zip(loaders["train"], range(steps), strict=False)]
        asked = iter([steps, 0])
        told = []

        def blocks(loader, batches=batches, asked=asked, told=told):
            return Blocks(Sized(batches, len(loader)), lambda: next(asked), told.append, Products())

        contenders.CONTENDERS[name](teacher, student, loaders, blocks)
        assert [block["steps"] for block in told] == [steps]
        assert told[0]["tokens"] == sum(int(batch["attention_mask"].sum()) for batch in batches)
        assert any((batch["attention_mask"] == 0).any() for batch in batches)
        students[name] = student
    return students


class Sized(list):
    """Batches that say another length: that of the loader which they stand for."""

    def __init__(self, batches, length):
        super().__init__(batches)
        self.length = length

    def __len__(self):
        return self.length


def moved(student, start):
    return torch.cat([(a - b).flatten() for a, b in zip(student.parameters(), start.parameters(), strict=True)])


def test_contenders_of_the_same_objective_make_the_same_student(trained, sentences, monkeypatch):
    monkeypatch.setattr(contenders, "LEARNING_RATE", 1e-2)
    students = students_of(["masked_after", "ours_fp32", "article"], trained, sentences)
    start = models.extract_student(models.load_teacher(trained)[0], [0, 3])
    ours, peers, articles = (moved(students[name], start) for name in ("ours_fp32", "masked_after", "article"))
    assert ours.norm() > 0.1
    assert (ours - peers).norm() < 1e-3 * ours.norm()
    assert (ours - articles).norm() > 0.05 * ours.norm()


@pytest.mark.slow
def test_textbrewer_makes_the_same_student_too(trained, sentences, monkeypatch):
    monkeypatch.setattr(contenders, "LEARNING_RATE", 1e-2)
    students = students_of(["textbrewer", "ours_fp32"], trained, sentences)
    start = models.extract_student(models.load_teacher(trained)[0], [0, 3])
    ours, theirs = (moved(students[name], start) for name in ("ours_fp32", "textbrewer"))
    assert (ours - theirs).norm() < 1e-3 * ours.norm()


def test_the_articles_kl_is_over_every_attended_position(tiny, sentences):
    teacher, tokenizer = tiny
    student = models.extract_student(teacher, [0, 3])
    loaders = masked_lm_loaders(sentences, tokenizer, max_length=48, batch_size=4, pack=False)
    batch = next(iter(loaders["train"]))
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "output_hidden_states": True}
    with torch.no_grad():
        outputs = student(**inputs), teacher(**inputs)
        wrapped = [models.MaskedPositionLM(model)(**batch)[0] for model in (student, teacher)]
    attended = batch["attention_mask"].bool()
    assert not attended.all()
    parts = {name: getattr(contenders, name)(*outputs, batch) for name in ("article", "masked_after")}
    everywhere = losses.kl_div_loss(*(output.logits[attended] for output in outputs), 2.0)
    torch.testing.assert_close(parts["article"]["kl"], everywhere)
    torch.testing.assert_close(parts["masked_after"]["kl"], losses.kl_div_loss(*wrapped, 2.0))
    for part in parts.values():
        torch.testing.assert_close(part["mlm"], losses.masked_lm_loss(wrapped[0], masked_targets(batch)))
        hidden = [output.hidden_states[-1] for output in outputs]
        torch.testing.assert_close(part["cosine"], losses.cosine_loss(*hidden, batch["attention_mask"]))


def test_products_are_counted_with_their_shapes():
    products = Products()
    weight = torch.randn(5, 3, requires_grad=True)
    query = torch.randn(2, 4, 6, 8, requires_grad=True)
    with products:
        torch.nn.functional.linear(torch.randn(7, 3), weight).sum().backward()
        attended = torch.nn.functional.scaled_dot_product_attention(query, query, query)
        attended.sum().backward()
    assert products.counts[1, 7, 3, 5, torch.float32] == 1  # forward
    assert products.counts[1, 5, 7, 3, torch.float32] == 1  # the weight's gradient
    assert products.counts[8, 6, 8, 6, torch.float32] == 3  # scores: forward, and two of the four of backward
    assert products.counts[8, 6, 6, 8, torch.float32] == 3
    assert products.flop() == 2 * (2 * 7 * 3 * 5 + 6 * 8 * 6 * 6 * 8)


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmark reads Linux's /proc")
@pytest.mark.slow
def test_the_benchmark_records_what_the_report_needs(trained, tmp_path, monkeypatch):
    work = {"name": "tiny", "batch": 4, "length": 24, "layers": 2, "corpus": str(ROOT / "tests/data/sentences.csv")}
    plan = yaml.safe_load((ROOT / "tests/bench/full.yaml").read_text(encoding="utf-8"))
    plan["teacher"] = {"folder": str(trained)}
    names = ["article", "masked_after", "ours"]
    plan["speed"] |= {"rounds": 1, "block_seconds": 0, "product_seconds": 0, "works": [work], "contenders": names}
    plan["quality"] |= {"minutes": 0.002, "contenders": ["article", "ours"], "work": work}
    base = {key: work[key] for key in ("batch", "length", "layers", "corpus")} | {"vocabulary": 500, "masked": 0.15}
    axes = {"length": [24], "batch": [4], "vocabulary": [500], "masked": [0.15, 1.0]}
    plan["growth"] |= {"rounds": 1, "block_seconds": 0, "product_seconds": 0, "base": base, "axes": axes}
    plan["reading"]["rows"] = [50]
    plan["inference"] = {"batches": [2], "lengths": [8], "works": [{"name": "tiny", "layers": 2}]}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    command = [
        sys.executable,
        "tests/bench/run.py",
        "--plan",
        tmp_path / "plan.yaml",
        "--record",
        tmp_path / "record.json",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert [row["contender"] for row in record["rows"]] == names
    for row in [*record["rows"], *record["growth"]]:
        assert row["tokens_per_second"] > 0
        assert row["matrix_share"] > 0
        assert 0 < row["waiting_share"] < 1
    steps = {row["contender"]: row["steps"] for row in record["quality"]}
    seconds = {row["contender"]: row["seconds_per_step"] for row in record["rows"]}
    assert steps == {name: max(1, round(0.12 / seconds[name])) for name in ("article", "ours")}
    assert all(0 <= row["masked_accuracy"] <= 1 and row["kl_to_teacher"] > 0 for row in record["quality"])
    assert {(row["axis"], row["value"]) for row in record["growth"]} == {(a, v) for a in axes for v in axes[a]}
    assert [(row["rows"], row["times"]) for row in record["reading"]] == [(50, "first"), (50, "cached")]
    assert record["inference"][0]["teacher_ms"] > 0
    text = report.section(record)
    assert text.count("Measured on: ") == len(record["machines"]) == 5
    record["machines"]["inference"]["precision"] = "another"
    assert "another.\n\nA forward pass" in report.section(record), "each part says what it was measured on"
    assert len(report.draw(record["growth"], record["machines"]["growth"]).axes) == 8


MACHINE = {"device": "a processor", "cores": 2, "torch": "2", "precision": "bfloat16 autocast"}


def measured(contender, *seconds):
    """A row of the record: what a contender took for a step in each round, of the work 4 x 8."""
    middle = sorted(seconds)[len(seconds) // 2]
    return {
        "work": "tiny 4 x 8",
        "contender": contender,
        "tokens_per_second": 32 / middle,
        "peak_memory_mb": 1.0,
        "seconds_per_step": middle,
        "matrix_share": 0.5,
        "waiting_share": 0.0,
        "seconds_of_blocks": list(seconds),
    }


def test_a_ratio_is_taken_between_steps_in_the_same_type():
    rows = [measured("article", 8.0, 9.0, 6.0), measured("article_bf16", 5.0, 5.0, 4.0), measured("ours", 1.0, 0.5, 1)]
    record = {"rows": [*rows, measured("ours_fp32", 2.0, 3.0, 2.0)], "machines": {"rows": MACHINE}}
    text = report.section(record)
    assert "float32 | 8.00 (6.00 to 9.00) | 4 | 4.0 (3.0 to 4.0) |" in text
    assert "bfloat16 | 5.00 (4.00 to 5.00) | 6 | 5.0 (4.0 to 10.0) |" in text
    assert "### tiny 4 rows x 8 tokens" in text
    assert "takes up to 2.0 times as long as the fastest" in text
    assert report.summary(record).endswith("4.0 to 4.0 times as fast in float32, 5.0 to 5.0 times as fast in bfloat16")
    record["rows"].pop()
    text = report.section(record)
    assert "float32 | 8.00 (6.00 to 9.00) | 4 | no float32 of ours to compare with |" in text
    assert "in float32" not in report.summary(record)
    # On a machine without bfloat16, what this repository does by default is float32.
    record["machines"]["rows"] = {**MACHINE, "precision": "float32"}
    assert "float32 | 8.00 (6.00 to 9.00) | 4 | 8.0 (6.0 to 18.0) |" in report.section(record)
    assert "no bfloat16 of ours to compare with" in report.section(record)


def test_the_page_holds_the_record():
    record, page = json.loads(report.RECORD.read_text(encoding="utf-8")), report.PAGE.read_text(encoding="utf-8")
    assert report.written(page, record) == page
    assert report.section(record) in page
    assert report.summary(record) in page
    with pytest.raises(ValueError, match="bench-summary"):
        report.written(page.replace("<!-- bench-summary -->", ""), record)
