"""The benchmark on tiny data: what is compared computes the same, and its page holds what was measured."""

import copy
import importlib.util
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
from helpers.classification import classifier_of
from helpers.data import bundled_reviews, encode, masked_lm_loaders, masked_targets, row_loader
from helpers.runs.parameters import defaults

sys.path.insert(0, str(ROOT / "tests" / "bench"))
import report

import classifiers
import contenders
from blocks import Blocks, Products

PLAN = yaml.safe_load((ROOT / "tests/bench/full.yaml").read_text(encoding="utf-8"))
spec = importlib.util.spec_from_file_location("bench_run", ROOT / "tests/bench/run.py")
bench_run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench_run)


@pytest.fixture(autouse=True)
def on_the_processor(monkeypatch):
    for module in (contenders, classifiers):
        monkeypatch.setattr(module, "DEVICE", torch.device("cpu"))
        monkeypatch.setattr(module, "Engine", partial(Engine, cpu=True))


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


class Sized(list):
    """Batches that say another length: that of the loader which they stand for."""

    def __init__(self, batches, length):
        super().__init__(batches)
        self.length = length

    def __len__(self):
        return self.length


def one_block(batches, told):
    """What a contender is given to take its batches in blocks: one block of these, whatever its loader holds."""
    asked = iter([len(batches), 0])
    return lambda loader: Blocks(Sized(batches, len(loader)), lambda: next(asked), told.append, Products())


@pytest.fixture
def move(trained, sentences, monkeypatch):
    """From a contender's name to how far it moves the student's weights: the same start, the same three batches.

    Weights are float64 where none is told: of a gradient near zero, AdamW's step is as long as of any other, and
    float32 rounds its sign. (Our attention computes in float32 all the same.)
    """
    monkeypatch.setattr(contenders, "LEARNING_RATE", 1e-2)

    def move(name, precision=None):
        teacher, tokenizer = models.load_teacher(trained)
        start = models.extract_student(teacher, [0, 3])
        for model in (teacher, start):
            model.to(torch.float32 if precision else torch.float64)
        student = copy.deepcopy(start)
        loaders = masked_lm_loaders(sentences, tokenizer, max_length=48, batch_size=4, pack=False, steps_per_epoch=40)
        torch.manual_seed(0)
        batches, told = [batch for batch, _ in zip(loaders["train"], range(3), strict=False)], []
        contenders.CONTENDERS[name].train(precision or "float32", teacher, student, loaders, one_block(batches, told))
        assert [block["steps"] for block in told] == [3]
        assert told[0]["tokens"] == sum(int(batch["attention_mask"].sum()) for batch in batches)
        assert any((batch["attention_mask"] == 0).any() for batch in batches)
        return torch.cat([(a - b).flatten() for a, b in zip(student.parameters(), start.parameters(), strict=True)])

    return move


CHANGED = ["ours_all_logits", "ours_torchs_losses", "ours_torchs_modules", "ours_unfused", "ours_memory"]


def test_contenders_of_one_objective_make_the_same_student(move):
    ours = move("ours")
    assert ours.norm() > 0.1
    for name in ["masked_after", "huggingface", *CHANGED]:
        assert (ours - move(name)).norm() < 1e-3 * ours.norm(), name
    article = move("article")
    assert (ours - article).norm() > 0.05 * ours.norm()
    assert (move("ours_attended") - article).norm() < 1e-3 * article.norm()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["textbrewer", "textbrewer_outside"])
def test_and_so_does_textbrewer(move, name):
    ours = move("ours")
    assert (ours - move(name)).norm() < 1e-3 * ours.norm()


def test_bfloat16_is_what_a_contender_is_told(move):
    """A student moved in bfloat16 is another than in float32, and nearer to it than a student of another loss."""
    for name in ("masked_after", "huggingface", "ours"):
        exact, rounded, other = move(name), move(name, "bfloat16"), move("article")
        assert 1e-4 * exact.norm() < (exact - rounded).norm() < (exact - other).norm(), name


def test_changing_one_thing_of_ours_changes_that_thing(move, monkeypatch):
    """A change that changed nothing would make the same student, too: each is seen to be called."""
    seen = set()

    def watch(where, name, said):
        original = getattr(where, name)

        def watched(*arguments, **options):
            seen.add(said)
            return original(*arguments, **options)

        monkeypatch.setattr(where, name, watched)

    watch(models.MaskedPositionLM, "forward", "ours_all_logits")
    watch(losses.outputs, "_sum_over_rows", "ours_torchs_losses")
    watch(contenders.steps, "fast_training", "ours_torchs_modules")
    watch(contenders.engines, "keep_freed_memory", "ours_memory")
    for name in CHANGED:
        seen.clear()
        move(name)
        assert name not in seen
        assert name == "ours_unfused" or len(seen) == 3


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
    parts = {name: getattr(contenders, name)(*outputs, batch) for name in ("article", "masked_after", "huggingface")}
    everywhere = losses.kl_div_loss(*(output.logits[attended] for output in outputs))
    torch.testing.assert_close(parts["article"]["kl"], everywhere)
    for name in ("masked_after", "huggingface"):
        torch.testing.assert_close(parts[name]["kl"], losses.kl_div_loss(*wrapped))
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


def test_fine_tuning_and_predicting_are_those_of_the_trainer(tiny, monkeypatch):
    monkeypatch.setattr(classifiers, "LEARNING_RATE", 1e-1)
    monkeypatch.setattr(classifiers, "STEPS", 100)  # of which six warm up
    teacher, tokenizer = tiny
    teacher.config.hidden_dropout_prob = teacher.config.attention_probs_dropout_prob = 0.0
    start = classifier_of(teacher, ["negative", "positive"], seed=0)
    texts = bundled_reviews("rotten_tomatoes").shuffle(seed=0).select(range(22))
    texts = texts.map(lambda row, number: {"text": row["text"][: 4 + number]}, with_indices=True)
    rows = encode(texts, tokenizer, 24)
    batches, moved, logits = list(row_loader(rows, tokenizer, 4))[:3], {}, {}
    assert any((batch["attention_mask"] == 0).any() for batch in batches)
    for name, each in classifiers.FINE_TUNING.items():
        classifier, told = copy.deepcopy(start), []
        each.train("float32", classifier, rows, tokenizer, 4, one_block(batches, told))
        assert told[0]["texts"] == 12
        pairs = zip(classifier.parameters(), start.parameters(), strict=True)
        moved[name] = torch.cat([(a - b).detach().flatten() for a, b in pairs])
    assert moved["ours"].norm() > 0.1
    for name in ("trainer", "trainer_by_length"):  # which spares biases the decay of the weights
        assert (moved["ours"] - moved[name]).norm() < 5e-3 * moved["ours"].norm()
    for name, each in classifiers.PREDICTING.items():
        told, asked = [], iter([6, 0])
        passes = classifiers.Passes(rows, 4, lambda asked=asked: next(asked), told.append)
        predict = each.train("float32", copy.deepcopy(start).eval(), tokenizer, 4)
        passes.run(lambda chosen, name=name, predict=predict: logits.update({name: predict(chosen)}))
        assert told[0]["texts"] == 24
    torch.testing.assert_close(logits["ours"], logits["trainer"], rtol=1e-4, atol=1e-5)
    assert logits["ours"].shape == (24, 2)


def test_the_loss_is_that_of_notebook_03():
    own = defaults(ROOT / "notebooks" / "03_runner.ipynb")
    assert own["TEMPERATURE"] == contenders.TEMPERATURE
    assert own["LEARNING_RATE"] == contenders.LEARNING_RATE
    assert {name: weight for name, weight in own["LOSS_WEIGHTS"].items() if weight} == contenders.WEIGHTS


def test_the_plan_compares_like_with_like():
    assert set(PLAN) == {"teacher", "turns", *bench_run.PARTS}
    for part in bench_run.IN_ROWS:
        assert PLAN[part]["rounds"] >= 7
        assert PLAN[part]["least_steps"] >= 2
        for work in PLAN[part]["works"]:
            kind = bench_run.kind(work)
            beside = {report.OURS[kind[name].objective] for name in work["contenders"]}
            assert beside <= set(work["contenders"]), "ours stands beside the others of its objective"
    for part in ("speed", "classifiers"):
        assert PLAN[part]["precisions"] == list(contenders.PRECISIONS)
    assert {"masked_after", "article", "ours"} <= set(PLAN["quality"]["contenders"])
    planned = {name for part in ("speed", "changes") for work in PLAN[part]["works"] for name in work["contenders"]}
    assert planned == set(contenders.CONTENDERS), "what stands in the code is measured"


def test_a_part_that_was_stopped_goes_on(monkeypatch):
    done, record, saved = [], {"rows": [{"part": "changes", "work": "other"}]}, []
    plan = {"speed": {"rounds": 1}}

    def measure(name):
        if name == "second" and len(done) == 1:
            raise KeyboardInterrupt
        done.append(name)
        return [{"work": name}]

    def part(own, teacher):
        return {name: partial(measure, name) for name in ("first", "second")}

    def run(plan):
        bench_run.measured("speed", plan, "teacher", record, lambda: saved.append(copy.deepcopy(record)))

    monkeypatch.setitem(bench_run.PARTS, "speed", part)
    with pytest.raises(KeyboardInterrupt):
        run(plan)
    assert saved[-1]["begun"]["speed"]["rows"] == {"first": [{"work": "first"}]}
    done.append("the measuring goes on")
    run(plan)
    assert done == ["first", "the measuring goes on", "second"]
    assert saved[-1]["begun"] == {}
    assert [(row["part"], row["work"]) for row in record["rows"]] == [
        ("changes", "other"),
        ("speed", "first"),
        ("speed", "second"),
    ]
    assert record["plans"]["speed"] == plan["speed"]
    run({"speed": {"rounds": 2}})
    assert done[3:] == ["first", "second"], "another plan begins anew"
    assert len(record["rows"]) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmark reads Linux's /proc")
@pytest.mark.slow
def test_the_benchmark_records_what_the_report_needs(trained, tmp_path):
    plan = copy.deepcopy(PLAN)
    plan["teacher"] = {"folder": str(trained)}
    work = {"name": "tiny 4 x 24", "batch": 4, "length": 24, "layers": 2}
    work["corpus"] = str(ROOT / "tests/data/sentences.csv")
    short = {"rounds": 2, "block_seconds": 0, "product_seconds": 0, "precisions": ["bfloat16"]}
    plan["speed"] |= {**short, "works": [{**work, "contenders": ["masked_after", "ours"]}]}
    plan["changes"] |= {**short, "works": [{**work, "contenders": ["ours_unfused", "ours"]}]}
    tuning = {**work, "name": "fine-tuning", "does": "fine-tuning", "texts": 40, "contenders": ["trainer", "ours"]}
    plan["classifiers"] |= {**short, "works": [tuning, {**tuning, "name": "predicting", "does": "predicting"}]}
    plan["quality"] |= {"minutes": 0.002, "contenders": ["ours"], "work": work}
    base = {key: work[key] for key in ("batch", "length", "layers", "corpus")} | {"vocabulary": 500, "masked": 0.15}
    axes = {"length": [24], "batch": [4], "vocabulary": [500], "masked": [0.15, 1.0]}
    plan["growth"] |= {"rounds": 1, "block_seconds": 0, "product_seconds": 0, "base": base, "axes": axes}
    plan["reading"]["rows"] = [50]
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    where = ["--plan", tmp_path / "plan.yaml", "--record", tmp_path / "record.json"]
    done = subprocess.run([sys.executable, "tests/bench/run.py", *where], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    keys = {"work", "contender", "precision", "objective", "tokens_per_second", "peak_memory_mb"}
    assert all(keys <= set(row) for row in record["rows"])
    assert [(row["part"], row["work"], row["contender"]) for row in record["rows"]] == [
        ("speed", "tiny 4 x 24", "masked_after"),
        ("speed", "tiny 4 x 24", "ours"),
        ("changes", "tiny 4 x 24", "ours_unfused"),
        ("changes", "tiny 4 x 24", "ours"),
        ("classifiers", "fine-tuning", "trainer"),
        ("classifiers", "fine-tuning", "ours"),
        ("classifiers", "predicting", "trainer"),
        ("classifiers", "predicting", "ours"),
    ]
    for row in record["rows"]:
        assert row["precision"] == "bfloat16"
        assert row["tokens_per_second"] > 0
        assert len(row["blocks"]) == 2
        assert {block["texts"] for block in row["blocks"]} == {2 * 4}
    assert all(row["matrix_share"] > 0 for row in record["rows"] if row["part"] == "speed")
    before, ours = record["quality"]
    assert (before["contender"], before["steps"]) == ("extracted", 0)
    assert ours["steps"] >= 1
    assert all(0 <= row["masked_accuracy"] <= 1 and row["kl_to_teacher"] > 0 for row in (before, ours))
    assert {(row["axis"], row["value"]) for row in record["growth"]} == {(a, v) for a in axes for v in axes[a]}
    assert [(row["rows"], row["times"]) for row in record["reading"]] == [(50, "first"), (50, "cached")]
    assert set(record["machines"]) == set(record["plans"]) == set(record["codes"]) == set(bench_run.PARTS)
    page = report.page(record)
    assert page.count("Measured on: ") == 6
    assert "{{" not in page
    assert report.NOT_MEASURED not in page
    assert len(report.draw(record["growth"]).axes) == 8


MACHINE = {"device": "a processor", "cores": 2, "bfloat16": ["amx_bf16"], "torch": "2"}
LOSS = {"temperature": 1.0, "weights": {"kl": 0.5, "mlm": 0.5}, "learning_rate": 1e-3}


def measured(contender, precision, *seconds, objective="masked", memory=100.0, **other):
    """A row of the record: what a contender took for blocks of two steps of 4 x 8, one in each round."""
    blocks = [{"seconds": each, "tokens": 64, "texts": 8, "waiting": 0.0} for each in seconds]
    middle = sorted(seconds)[len(seconds) // 2]
    row = {"part": "speed", "work": "tiny 4 x 8", "objective": objective, "contender": contender}
    row |= {"precision": precision, "tokens_per_second": 64 / middle, "peak_memory_mb": memory, "matrix_share": 0.5}
    return row | {"steps_in_a_block": 2, "blocks": blocks, **other}


def recorded(*rows):
    plan = {"rounds": 3, "block_seconds": 4, "least_steps": 2}
    return {"rows": list(rows), "machines": {"speed": MACHINE}, "plans": {"speed": plan}, "loss": LOSS}


def test_a_ratio_is_taken_within_one_objective_and_precision():
    record = recorded(
        measured("masked_after", "float32", 16.0, 18.0, 12.0, memory=200.0),
        measured("ours", "float32", 4.0, 6.0, 4.0),
        measured("masked_after", "bfloat16", 10.0, 10.0, 8.0, memory=125.0),
        measured("ours", "bfloat16", 2.0, 1.0, 2.0),
        measured("article", "float32", 90.0, 90.0, 90.0, objective="attended"),
    )
    text = report.speed(record)
    assert "| float32 | 8.000 (6.000 to 9.000) | 4 | 4.0 (3.0 to 4.0) | 200 MB | 0.50 |" in text
    assert "| bfloat16 | 5.000 (4.000 to 5.000) | 6 | 5.0 (4.0 to 10.0) | 125 MB | 0.80 |" in text
    assert "| float32 | 45.000 (45.000 to 45.000) | 1 |  | 100 MB |  |" in text, "ours has another objective"
    assert text.count("### tiny 4 rows x 8 tokens") == 1
    assert all(f"| loss: {contenders.OBJECTIVES[objective]} |" in text for objective in ("masked", "attended"))
    assert "Each row rests on 3 blocks of 2 steps." in text
    said = "4.0 times as fast in float32, 5.0 times as fast in bfloat16, with 0.50 to 0.80 of"
    assert report.summary(record) == f"- {contenders.CONTENDERS['masked_after'].label}: {said} its memory"
    assert f"{said} the memory." in report.readme(record)
    record["rows"] = record["rows"][:3]  # no bfloat16 of ours
    assert "in bfloat16" not in report.summary(record)


def test_what_both_compute_at_every_position_is_said():
    rows = [measured("article", "float32", 8.0, objective="attended")]
    rows.append(measured("ours_attended", "float32", 2.0, objective="attended"))
    (line,) = report.summary(recorded(*rows)).splitlines()
    assert "4.0 times as fast in float32" in line
    assert line.endswith("both take the KL at every attended position")


def test_the_readme_has_five_lines_and_the_trainers_best():
    rows = [
        measured(name, precision, seconds)
        for precision in contenders.PRECISIONS
        for name, seconds in (("masked_after", 4.0), ("huggingface", 6.0), ("textbrewer_outside", 8.0), ("ours", 2.0))
    ]
    for name, seconds in (("trainer", 9.0), ("trainer_by_length", 3.0), ("ours", 2.0)):
        rows.append(measured(name, "float32", seconds, objective="labels", part="classifiers", work="fine-tuning"))
    text = report.readme(recorded(*rows))
    assert len(text.splitlines()) == 5
    assert "fine-tuning: 1.5 times in float32, with 1.00 of its memory" in text
    assert "beside TextBrewer's, at one size of model and batch" in text
    assert "No GPU was measured." in text
    record = recorded(*rows)
    record["machines"]["speed"] = {"device": "a card", "torch": "2"}
    assert "Measured on a GPU: a card." in report.readme(record)


def test_a_page_without_a_record_says_so():
    page = report.page({"machines": {}, "plans": {}, "loss": LOSS})
    assert page.count(report.NOT_MEASURED) == 8
    assert "0.5 KL + 0.5 masked LM, with temperature T = 1" in page


def test_the_page_and_the_readme_hold_the_record():
    record, page = json.loads(report.RECORD.read_text(encoding="utf-8")), report.PAGE.read_text(encoding="utf-8")
    assert report.page(record) == page
    text = report.README.read_text(encoding="utf-8")
    assert report.readme_with(text, record) == text
    with pytest.raises(ValueError, match="bench"):
        report.readme_with(text.replace("<!-- bench -->", ""), record)
