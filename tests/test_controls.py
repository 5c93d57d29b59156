"""The controls on tiny data: what is made, that it goes on by run, when it is stale, and its table."""

import itertools
import json
import re
import sys

import numpy as np
import pytest
import torch

from conftest import ROOT
from helpers.callbacks import LOSSES, are_loss_weights
from helpers.data import IGNORED
from helpers.evaluation import masked_lm_correct, masked_lm_scores
from helpers.models import extract_student
from helpers.runner import DistilMLMRunner, distillation_models
from helpers.runs import experiment
from helpers.runs.controls import packed, table, unpacked
from helpers.runs.parameters import defaults

sys.path.insert(0, str(ROOT / "notebooks" / "tools"))
import control_plan
import control_runs
import controls
from control_plan import PARTS, Run, mixed
from every_position import EveryPositionKLCallback, EveryPositionRunner

import stale
import tiny
from sources import Repository


@pytest.fixture
def base(parameters):
    return controls.shared_parameters({**parameters, "SEEDS": [0], "MAX_STEPS": 4, "TEACHER_STEPS": 4})


@pytest.fixture
def part(monkeypatch, engine):
    """A part of three runs, which are made in float32 on the processor."""
    runs = [Run("teacher", "head"), mixed("mlm", {"mlm": 1.0})(seed=1), mixed("kl", {"kl": 1.0})(seed=1)]
    monkeypatch.setitem(PARTS, "few", lambda base: runs)
    monkeypatch.setattr(control_runs, "Engine", lambda: engine)
    return runs


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PARTS)
def test_the_runs_of_a_part_have_names_of_their_own_and_right_parameters(name):
    base = controls.shared_parameters({"MAX_STEPS": 320, "SEEDS": [0, 1, 2]})
    runs = PARTS[name](base)
    keys = [run.key for run in runs]
    assert len(set(keys)) == len(keys)
    assert runs[0].trains == "head", "the teacher is a row of every table"
    for run in runs:
        values = control_runs.parameters_of(run, base)
        assert set(run.parameters) <= set(base)
        assert are_loss_weights(values["LOSS_WEIGHTS"], LOSSES)
        assert sum(values["LOSS_WEIGHTS"].values()) == pytest.approx(1)
        assert len(experiment.chosen_layers(values["LAYERS"], 6)) == 3
    seeds = {run.label: sorted(each.seed for each in runs if each.label == run.label) for run in runs}
    for label, own in seeds.items():
        once = name == "recipe" or label.startswith(("teacher", "extracted")) or "1280 steps" in label
        assert own == ([0] if once else [0, 1, 2]), label


def test_a_part_that_was_ended_goes_on_with_its_next_run_and_the_same_seed_gives_the_same_entry(
    part, base, tmp_path, monkeypatch
):
    made, make = [], control_runs.make

    def ended(run, *arguments):
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(run.key)
        return make(run, *arguments)

    file = tmp_path / "few.json"
    monkeypatch.setattr(control_runs, "make", ended)
    with pytest.raises(KeyboardInterrupt):
        control_runs.make_part("few", base, file, {}, [])
    assert list(read(file)["entries"]) == ["teacher"]
    monkeypatch.setattr(control_runs, "make", lambda run, *arguments: made.append(run.key) or make(run, *arguments))
    control_runs.make_part("few", base, file, read(file), [])
    assert made == ["teacher", "mlm, seed 1", "kl, seed 1"]

    whole = tmp_path / "whole.json"
    control_runs.make_part("few", {**base, "OUTPUT_DIR": str(tmp_path / "elsewhere")}, whole, {}, [])
    first, second = read(file), read(whole)
    assert set(first.pop("timings")) == set(second.pop("timings")) == set(first["entries"])
    assert first == second
    assert first["entries"]["mlm, seed 1"]["correct"] != first["entries"]["teacher"]["correct"]
    assert len(first["entries"]["teacher"]["validations"]) == 4
    tokens = first["scored_masked_tokens"]
    for entry in first["entries"].values():
        right = unpacked(entry["correct"], tokens)
        assert right.mean() == pytest.approx(entry["scores"]["masked_accuracy"], abs=1e-12)
        at_mask = right[unpacked(first["at_mask"], tokens)].mean()
        assert at_mask == pytest.approx(entry["scores"]["accuracy_at_mask"], abs=1e-12)

    monkeypatch.setattr(control_runs, "make", None)  # not called: another part has the runs
    again = tmp_path / "again.json"
    control_runs.make_part("few", base, again, {}, [read(file)])
    assert read(again)["entries"] == first["entries"]
    with pytest.raises(ValueError, match="was made with the parameters"):
        control_runs.make_part("few", {**base, "MAX_STEPS": 8}, file, read(file), [])


def test_a_run_depends_on_what_it_is_made_with_and_not_on_its_label(base, engine):
    def name(run):
        return control_runs.identity_of(run, base, engine)

    run = mixed("one", {"kl": 1.0})()
    assert name(run) == name(mixed("other", {"kl": 1.0})())
    others = [mixed("one", {"kl": 1.0})(seed=1), mixed("one", {"mlm": 1.0})(), mixed("one", {"kl": 1.0}, MAX_STEPS=5)()]
    others += [mixed("one", {"kl": 1.0})(weights="embeddings"), mixed("one", {"kl": 1.0})(everywhere=True)]
    others += [mixed("one", {"kl": 1.0})(recipe=experiment.HeadRecipe(1e-3))]
    assert len({name(each) for each in [run, *others]}) == 7
    assert name(Run("a", "nothing")) == name(Run("b", "nothing", parameters={"TEMPERATURE": 3.0}))


def test_a_run_with_a_task_is_fine_tuned_and_tested(base, engine, part, tmp_path, monkeypatch):
    small = base | {"FINE_TUNING_EPOCHS": 2}
    runs = [Run("teacher", "head", task=True), Run("extracted", "nothing", task=True)]
    monkeypatch.setitem(PARTS, "few", lambda base: runs)
    records = []
    for file in (tmp_path / "one.json", tmp_path / "two.json"):
        control_runs.make_part("few", small, file, {}, [])
        records.append(read(file))
    assert records[0]["entries"] == records[1]["entries"]
    assert records[0]["tested_texts"] == small["PART_SIZES"]["test"]
    shown = table(records[0], "teacher")
    for label, entry in records[0]["entries"].items():
        own = entry["task"]
        right = unpacked(own["correct"], records[0]["tested_texts"])
        assert right.mean() == pytest.approx(own["test_accuracy"])
        assert shown.loc[label, "on the task, %"].startswith(f"{100 * right.mean():.1f} (")
        assert set(own["searched"]) == {"0.001", "0.003"}
    without = control_runs.parameters_of(Run("extracted", "nothing"), small)
    assert "PART_SIZES" not in without, "what other runs do not depend on"


def test_random_layers_start_from_their_seed(base, engine, part):
    made = [
        control_runs.make(Run("random", "nothing", seed=seed, weights="embeddings"), base, engine)[0]
        for seed in (0, 0, 1)
    ]
    assert made[0] == made[1]
    assert made[0]["scores"] != made[2]["scores"]


def test_the_kl_loss_at_every_position_is_that_of_the_whole_logits(tiny, engine):
    model, _ = tiny
    student = extract_student(model, [0, 3])
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, model.config.vocab_size, (3, 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor([9, 6, 4])[:, None]).long()
    labels = torch.where((torch.rand(3, 9, generator=generator) < 0.4) & mask.bool(), ids, IGNORED)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    runners = [EveryPositionRunner(), DistilMLMRunner()]
    for runner in runners:
        runner.model = distillation_models(model, student, {"kl": 1.0}, seed=0)
        runner.handle_batch(batch)
    everywhere, usual = (runner.batch for runner in runners)
    for key in ("s_logits", "t_logits"):
        torch.testing.assert_close(everywhere[key], usual[key], rtol=1e-5, atol=1e-5)
    assert torch.equal(everywhere["labels"], labels)

    callback = EveryPositionKLCallback(temperature=2.0)
    own, step = callback.count(everywhere)
    found = callback.measure(everywhere, step)
    with torch.no_grad():
        s, t = (each(input_ids=ids, attention_mask=mask).logits[mask.bool()].double() / 2 for each in (student, model))
    p, q = t.softmax(-1), s.softmax(-1)
    assert own == mask.sum() == 19
    assert found.item() == pytest.approx((4 * (p * (p / q).log()).sum() / 19).item(), rel=1e-4)


def test_correct_tokens_are_those_of_the_scores(tiny, engine, base):
    model, tokenizer = tiny
    loader = experiment.corpus_loaders({**base, "BATCH_SIZE": 7}, tokenizer, 4)["valid"]
    scores = masked_lm_scores({"model": model}, model, loader, engine, tokenizer.mask_token_id)["model"]
    right = masked_lm_correct(model, loader, engine)
    assert right.shape == (scores["masked_tokens"],)
    assert right.mean() == scores["masked_accuracy"]


@pytest.mark.parametrize("tokens", [1, 8, 21, 1000])
def test_packed_tokens_are_unpacked_again(tokens):
    bits = np.random.default_rng(tokens).random(tokens) < 0.3
    np.testing.assert_array_equal(unpacked(packed(bits), tokens), bits)
    assert "/" not in packed(np.ones(tokens, dtype=bool))
    with pytest.raises(ValueError, match="the record is damaged"):
        unpacked(packed(bits), tokens + 8)


CORRECT = {"one": [[1, 0, 1, 1, 0], [1, 1, 0, 1, 0]], "two": [[0, 0, 1, 0, 0]]}
AT_MASK = [1, 1, 1, 0, 0]


def exact(kept, against=None):
    """Mean and 95 % interval, from all resamples of tokens and seeds that there are; in percent.

    Of the two seeds of "one", a resample draws one (see `bootstrap_accuracies`).
    """
    one, two = (np.array(CORRECT[name])[:, np.array(kept, dtype=bool)] for name in ("one", "two"))
    tokens = one.shape[1]
    drawn = []
    for chosen in itertools.product(range(tokens), repeat=tokens):
        other = two[:, list(chosen)].mean() if against else 0
        drawn += [one[seed, list(chosen)].mean() - other for seed in range(2)]
    low, high = np.quantile(np.array(drawn), [0.025, 0.975], method="inverted_cdf")
    return 100 * (one.mean() - (two.mean() if against else 0)), 100 * low, 100 * high


def test_the_intervals_of_the_table_are_those_of_all_resamples():
    entries, timings = {}, {}
    for label, own in CORRECT.items():
        for seed, bits in enumerate(own):
            scores = {"perplexity": 10.0 + seed, "kl_to_teacher": 0.5, "top5_overlap": 0.25}
            correct = packed(np.array(bits, dtype=bool))
            entries[f"{label}, seed {seed}"] = {"label": label, "scores": scores, "correct": correct}
            timings[f"{label}, seed {seed}"] = {"seconds": 60.0 + 120 * seed}
    record = {"scored_masked_tokens": 5, "at_mask": packed(np.array(AT_MASK, dtype=bool))}
    record |= {"entries": entries, "timings": timings}
    found = table(record, against="two")
    assert list(found.index) == ["one", "two"]
    for column, kept in (("accuracy, %", [1] * 5), ("at [MASK], %", AT_MASK)):
        assert found.loc["one", column] == "{:.1f} ({:.1f} to {:.1f})".format(*exact(kept))
        change = "{:+.1f} ({:+.1f} to {:+.1f})".format(*exact(kept, against="two"))
        assert found.loc["one", f"difference, {column}"] == change
        assert found.loc["two", f"difference, {column}"] == ""
    assert found.loc["one", ["runs", "perplexity", "minutes"]].tolist() == [2, 10.5, 2.0]
    with pytest.raises(ValueError, match="no row is called 'three'; there are 'one', 'two'"):
        table(record, against="three")


TINY = {"scored_masked_tokens": 100, "entries": {"teacher": {"scores": {"perplexity": 30.0}}}}


def test_a_record_from_other_code_is_stale_where_its_tiny_runs_are_others(tmp_path, monkeypatch):
    repository, outcome = Repository(ROOT), []
    monkeypatch.setattr(tiny, "part_outcome", lambda *arguments: {"record": outcome.pop()})
    sources = repository.part_sources("layers")
    assert {"helpers.training", "helpers.losses.layers", "helpers.evaluation"} <= set(sources["helpers"])
    file = tmp_path / "layers.json"

    def check(**others):
        made = {"part": "layers", "sources": {**sources, **others}, "record": TINY}
        stale.write(file, {"entries": {}, "made_from": made})
        return stale.check_record(file, repository)

    assert (check().reasons, check().note) == ([], "")
    helpers = {**sources["helpers"], "helpers.training": "another"}
    outcome.append({**TINY, "entries": {**TINY["entries"], "a new run": {"scores": {"perplexity": 1.0}}}})
    fresh = stale.renew(check(helpers=helpers))
    assert fresh.note.startswith("changed: helpers.training; its tiny run shows the same")
    renewed = read(file)["made_from"]
    assert renewed["sources"] == json.loads(json.dumps(sources))
    assert "a new run" in renewed["record"]["entries"]
    outcome.append({**TINY, "entries": {"teacher": {"scores": {"perplexity": 31.0}}}})
    (reason,) = check(helpers=helpers).reasons
    assert reason.endswith("its tiny run shows entries.teacher.scores.perplexity: 30 committed, 31 now")
    (reason,) = check(pins={**sources["pins"], "torch": "==1.0"}).reasons
    assert reason == "pins changed: torch"
    monkeypatch.setattr(controls, "record_file", lambda part, root: file)
    with pytest.raises(ValueError, match=r"layers.json is stale: pins changed: torch. Move it away"):
        controls.begun("layers", repository)


def test_the_command_makes_a_fresh_record_once(base, part, tmp_path, monkeypatch):
    repository = Repository(ROOT)
    monkeypatch.setattr(controls, "record_file", lambda part, root: tmp_path / f"{part}.json")
    monkeypatch.setattr(tiny, "part_outcome", lambda *arguments: {"record": TINY})
    del part[1:]
    controls.make("few", base, repository)
    record = read(tmp_path / "few.json")
    assert list(record["entries"]) == ["teacher"]
    assert re.fullmatch("[0-9a-f]{40}", record["made_from"]["commit"])
    assert record["made_from"]["record"] == TINY
    assert stale.check_record(tmp_path / "few.json", repository)[1:3] == ([], "")
    monkeypatch.setattr(control_runs, "make", None)  # not called again
    controls.make("few", base, repository)
    assert read(tmp_path / "few.json") == record


def test_parts_share_runs(engine):
    base = controls.shared_parameters({"SEEDS": [0], "MAX_STEPS": 320})
    assert base["LAYERS"] == "spread:3"
    by_name = {
        part: {control_runs.identity_of(run, base, engine): run.key for run in PARTS[part](base)}
        for part in ("losses", "length")
    }
    shared = set(by_name["losses"]) & set(by_name["length"])
    assert {by_name["losses"][name] for name in shared} >= {"default mix, seed 0", "masked LM alone, seed 0"}
    assert control_plan.number_of_layers({"LAYERS": [0, 1]}) == 2


@pytest.mark.slow
@pytest.mark.parametrize("part", ["losses", "layers", "teacher"])
def test_drawing_whole_blocks_gives_intervals_of_nearly_the_same_length(part):
    """Tokens of a block are related; the pages say how much that matters."""
    values = defaults(ROOT / "notebooks" / "03_runner.ipynb")
    tokenizer, record = experiment.prepare_teacher(values)[1], controls.read(controls.record_file(part))
    batches = list(experiment.corpus_loaders(values, tokenizer, values["MAX_STEPS"])["valid"])
    picked = [batch["labels"] != IGNORED for batch in batches]
    hidden = np.concatenate(
        [(batch["input_ids"] == tokenizer.mask_token_id)[own] for batch, own in zip(batches, picked, strict=True)]
    )
    tokens = record["scored_masked_tokens"]
    assert (unpacked(record["at_mask"], tokens) == hidden).all(), "the record has other tokens, or another order"
    sizes = np.concatenate([own.sum(dim=1) for own in picked])
    block = np.repeat(np.arange(len(sizes)), sizes)[hidden]
    drawn = np.random.default_rng(0).multinomial(len(sizes), [1 / len(sizes)] * len(sizes), size=4000)
    counts = drawn @ np.bincount(block, minlength=len(sizes))
    right = {key: unpacked(entry["correct"], tokens)[hidden].astype(float) for key, entry in record["entries"].items()}
    found = []
    for own in right.values():
        for values in (own, *(own - other for other in right.values() if other is not own)):
            if values.any():
                by_block = (drawn @ np.bincount(block, weights=values, minlength=len(sizes)) / counts).std()
                found.append(by_block / (values.std() / len(values) ** 0.5))
    assert min(found) > 0.95
    assert max(found) < 1.09
