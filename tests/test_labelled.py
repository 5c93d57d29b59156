import os
import subprocess
import sys

import datasets
import numpy as np
import pandas as pd
import pytest
import torch

from conftest import ROOT
from helpers import data
from helpers.data import IGNORED, LengthGroupedShuffle, bundled_reviews
from helpers.data.labelled import _shingles
from helpers.files.labels import classes
from helpers.runs import experiment

# Lines in the form of RuTweetCorp's files, invented.
POSITIVE = [
    "@katya_nn сегодня солнце, иду гулять :)",
    "сдала экзамен на пять, ура; празднуем вечером",
    "какой же вкусный торт испекла бабушка)",
    "наконец-то отпуск, завтра едем к морю",
    "RT @misha: лучший концерт в моей жизни",
    "котёнок уснул прямо на клавиатуре :D",
]
NEGATIVE = [
    "опять дождь и пробки, опоздал на работу :(",
    "телефон упал и разбился, так обидно(",
    "@dasha_k болею третий день, голова раскалывается",
    "проспала контрольную; настроения никакого",
    "закрыли любимую кофейню у дома(((",
    "зима без снега, серо и грустно",
]


def tweets(path, texts, kind):
    rows = [
        f'"{408906692374446080 + i}";"1386325927";"name_{i}";"{text}";"{kind}";"0";"0";"0";"7569";"62";"61";"0"'
        for i, text in enumerate(texts)
    ]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def write(path, rows, columns=("text", "label")):
    pd.DataFrame(rows, columns=list(columns)).to_csv(path, index=False)
    return path


def named(table):
    return list(zip(table["text"], table.features["label"].int2str(table["label"][:]), strict=True))


def test_rutweetcorps_files_are_read_as_they_are_published(tmp_path, capsys):
    source = {
        "negative": tweets(tmp_path / "negative.csv", NEGATIVE, -1),
        "positive": tweets(tmp_path / "positive.csv", POSITIVE, 1),
    }
    table = data.read_labelled(source, text_field=3)
    assert named(table) == [(text, "negative") for text in NEGATIVE] + [(text, "positive") for text in POSITIVE]
    assert table.features["label"].names == ["negative", "positive"]
    assert capsys.readouterr().err == "", "no progress bar of datasets"


def test_rutweetcorps_tweets_may_hold_quotes_and_line_breaks_also_the_first(tmp_path):
    """As CSV writes them: a quote doubled, the whole in quotes."""
    texts = ['ну ""вот"" и лето; ура', "первая строка\nвторая строка", "просто день"]
    for first in range(3):
        own = texts[first:] + texts[:first]
        source = {
            "negative": tweets(tmp_path / f"negative{first}.csv", own, -1),
            "positive": tweets(tmp_path / f"positive{first}.csv", POSITIVE, 1),
        }
        table = data.read_labelled(source, text_field=3)
        assert table["text"][:3] == [text.replace('""', '"') for text in own]


def test_a_tweet_whose_semicolon_no_quotes_hold_is_named(tmp_path):
    bad = tweets(tmp_path / "negative.csv", NEGATIVE, -1)
    bad.write_text(bad.read_text(encoding="utf-8") + "1;2;name;один; и другой;-1;0;0;0;1;2;3;0\n", encoding="utf-8")
    source = {"negative": bad, "positive": tweets(tmp_path / "positive.csv", POSITIVE, 1)}
    with pytest.raises(ValueError, match=r"negative\.csv: not readable as CSV.*line 7"):
        data.read_labelled(source, text_field=3)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["gut", "schlecht", "gut"], ["gut", "schlecht"]),
        ([10, 2, -1], ["-1", "2", "10"]),
        ([0.5, 10, 2], ["0.5", "2.0", "10.0"]),
        (["хорошо", "плохо", "так себе"], ["плохо", "так себе", "хорошо"]),
    ],
)
def test_labels_are_words_or_numbers_of_two_classes_or_more(tmp_path, labels, names):
    texts = ["Ёлка и снег.", "Ein Satz, mit Komma", "a third one"]
    path = write(tmp_path / "a.csv", list(zip(texts, labels, strict=True)), ("отзыв", "оценка"))
    table = data.read_labelled(path, "отзыв", "оценка")
    assert table.column_names == ["text", "label"]
    assert table.features["label"].names == names
    assert [text for text, _ in named(table)] == texts
    assert [label for _, label in named(table)] == [str(label) for label in pd.Series(labels)]


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["1", "1.0", " 1", "0", "2"], ["0", "1", "2"], [1, 1, 1, 0, 2]),
        (["1.0", "0.0", "1.00", "-1", "10"], ["-1", "0.0", "1.0", "10"], [2, 1, 2, 0, 3]),
        (["gut ", "gut", "sehr  gut", "sehr\u00a0gut", "x"], ["gut", "sehr gut", "x"], [0, 0, 1, 1, 2]),
        (["e\u0301t\u00e9", "\u00e9te\u0301", "hiver"], ["hiver", "\u00e9t\u00e9"], [1, 1, 0]),
        (["none", "1.0", "1", "inf"], ["1", "inf", "none"], [2, 0, 0, 1]),
        (["9007199254740993", "9007199254740992"], ["9007199254740992", "9007199254740993"], [1, 0]),
        ([1, 1.0, True, False, 2], ["1", "2", "False", "True"], [0, 0, 3, 2, 1]),  # of a file that has types
        (["a/b", "a", "c"], ["a", "a/b", "c"], [1, 0, 2]),
    ],
)
def test_labels_of_one_meaning_are_one_class(labels, names, numbers):
    assert classes(labels, ["text"] * len(labels), "file.csv", "label") == (names, numbers)


def test_spellings_that_are_taken_for_one_class_are_said(tmp_path, capsys):
    path = write(tmp_path / "a.csv", [("one", "1"), ("two", "1.0"), ("three", "0"), ("four", "1")])
    assert [label for _, label in named(data.read_labelled(path))] == ["1", "1", "0", "1"]
    assert "a.csv: one class, spelled '1' (2), '1.0' (1)." in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["", " ", "nan", "NaN", "None", "NULL", "<NA>", "n/a", None, float("nan"), pd.NaT])
def test_a_missing_label_in_any_spelling_is_missing(missing):
    texts = ["first", "second", "third"]
    kinds = {None: "null or NaN", "": "empty", " ": "empty"}
    kind = kinds.get(missing, f"'{missing}'")
    with pytest.raises(ValueError, match=r".") as caught:
        classes(["a", missing, "b"], texts, "file", "stars")
    assert str(caught.value) == (
        f"file: 1 of 3 texts have no label in column 'stars' ({kind}), the first of them 'second'. "
        "Label them, or leave these rows out; in pandas: df.dropna(subset=['stars'])."
    )


def test_missing_labels_of_a_parquet_file_are_named_and_pandas_takes_them_out(tmp_path):
    texts = ["ά" * 61, "ά" * 60, "third", "fourth"]
    rows = pd.DataFrame({"text": texts, "stars": [float("nan"), 1.0, 5.0, float("nan")]})
    file = tmp_path / "own.parquet"
    rows.to_parquet(file)
    with pytest.raises(ValueError, match=r".") as caught:
        data.read_labelled(file, "text", "stars")
    said = f"{file}: 2 of 4 texts have no label in column 'stars' (null or NaN), the first of them '{'ά' * 60}…'. "
    assert str(caught.value).startswith(said)
    rows.dropna(subset=["stars"]).to_parquet(file)
    assert data.read_labelled(file, "text", "stars")["text"][:] == texts[1:3]


@pytest.mark.parametrize("several", ["a,b", "b | a", "['x', 'y']", ["a", "b"], ["a"]])
def test_several_labels_in_a_field_are_said_with_counts(several):
    with pytest.raises(ValueError, match="file: 2 of 4 texts have several labels in column 'marks', the first of them"):
        classes(["a", several, "b", several], list("wxyz"), "file", "marks")


def test_the_order_of_classes_is_the_same_in_every_process():
    labels = ["1", "1.0", "01", "Ja", "ja", "1.00", "nein", " 1", "2e0", "2"]
    program = f"from helpers.files.labels import classes; print(classes({labels}, [''] * {len(labels)}, '', 'label'))"
    said = set()
    for seed in "0123":
        own = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", program], env=own, capture_output=True, text=True, check=True)
        said.add(done.stdout)
    assert len(said) == 1
    assert str((["1", "2", "Ja", "ja", "nein"], [0, 0, 0, 2, 3, 0, 4, 0, 1, 1])) in said.pop()


def test_a_file_without_names_is_read_by_number(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("1\tso good\n0\tso bad\n", encoding="utf-8")
    assert named(data.read_labelled(path, 1, 0)) == [("so good", "1"), ("so bad", "0")]


def test_columns_may_have_each_others_names(tmp_path):
    path = write(tmp_path / "a.csv", [("x", "good one"), ("y", "bad one")], ("text", "label"))
    assert named(data.read_labelled(path, "label", "text")) == [("good one", "x"), ("bad one", "y")]


@pytest.mark.parametrize(
    ("rows", "fields", "error", "message"),
    [
        ([("a", "x"), ("b", None), ("c", " ")], ("text", "label"), ValueError, "2 of 3 texts have no label.*'b'"),
        ([("a", "x"), ("b", "x")], ("text", "label"), ValueError, r"has the label \['x'\].*have to be two"),
        ([("a", "x")], ("text", "text"), ValueError, "LABELLED_TEXT_FIELD and LABEL_FIELD are both 'text'"),
        ([("a", "x")], ("text", "mark"), ValueError, "no column 'mark'.*set LABEL_FIELD"),
        ([("a", "x")], ("body", "label"), ValueError, "no column 'body'.*set LABELLED_TEXT_FIELD"),
        ([("a", "x")], (5, "label"), ValueError, "no column 5.*set LABELLED_TEXT_FIELD"),
        (None, ("text", "label"), FileNotFoundError, "no such file.*LABELLED_CORPUS"),
    ],
)
def test_bad_input_is_named(tmp_path, rows, fields, error, message):
    path = tmp_path / "a.csv"
    if rows is not None:
        write(path, rows)
    with pytest.raises(error, match=message):
        data.read_labelled(path, *fields)


def test_near_repeats_by_hand_and_against_every_pair():
    # Five words have three shingles; with one word more, three of four are shared.
    a, b, c = "one two three four five", "One two, three four FIVE six.", "one two three seven eight"
    assert data.near_repeats([a, b, c, a]).tolist() == [0, 0, 1, 0]  # a and c share one of five
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(list("abc"), generator.integers(1, 9))) for _ in range(60)]
    groups = np.arange(60)
    for i in range(60):
        for j in range(i):
            ours, theirs = (_shingles(texts[k]) for k in (i, j))
            if len(ours & theirs) >= 0.5 * len(ours | theirs):
                groups[groups == groups[i]] = groups[j]
    found = data.near_repeats(texts)
    assert ((found[:, None] == found) == (groups[:, None] == groups)).all()


def test_sentences_are_cut_and_the_short_left_out():
    text = "It was good... Really? I would see it again, and again! No. Он был хорош, очень даже. tail without any stop"
    assert data.sentences([text]) == [
        "I would see it again, and again!",
        "Он был хорош, очень даже.",
        "tail without any stop",
    ]


@pytest.fixture
def hundred():
    texts = [f"text number {i} says {i * 7919 % 1000} of thing {i * 31 % 97} and {i * 17 % 89}" for i in range(100)]
    rows = {"text": texts, "label": ["bad" if i % 4 == 0 else "good" for i in range(100)]}
    return data.with_label_names(datasets.Dataset.from_dict(rows), "hundred")


SIZES = {"train": 40, "valid": 20, "test": 20}


def corpus_of(*texts):
    return datasets.Dataset.from_dict({"text": list(texts)})


def test_no_text_stands_in_two_parts(hundred, capsys):
    double = hundred["text"][3].upper() + " !"
    near = hundred["text"][5] + " again"
    known = hundred["text"][7]
    more = datasets.Dataset.from_dict({"text": [double, near], "label": [1, 1]}, features=hundred.features)
    corpus = corpus_of(f"A review. {known}. And that was all of it then.", hundred["text"][9] + " too")
    table = datasets.concatenate_datasets([hundred, more])
    parts = data.part(table, SIZES, corpus=corpus, transfer_texts=1000)
    said = capsys.readouterr().out
    assert "102 labelled texts, left out: 1 that the corpus holds and 2 near repeats." in said
    assert {name: len(part) for name, part in parts.items()} == {**SIZES, "transfer": 99 - 80 + 2}
    everything = [text for part in parts.values() for text in part["text"]]
    groups = data.near_repeats(everything)
    assert len(set(groups.tolist())) == len(everything)
    assert known not in [text for name in SIZES for text in parts[name]["text"]]
    assert "And that was all of it then." in parts["transfer"]["text"][:]
    assert hundred["text"][9] + " too" not in everything, "a sentence of the corpus that repeats a labelled text"
    of = dict(named(table))
    for name in SIZES:
        assert all(of[text] == label for text, label in named(parts[name])), name
        assert parts[name]["label"][:].count(0) == pytest.approx(len(parts[name]) / 4, abs=1)


def test_parts_depend_on_the_seed_and_on_nothing_else(hundred):
    def texts(seed):
        parts = data.part(hundred, SIZES, corpus=corpus_of("Nothing of this."), transfer_texts=10, seed=seed)
        assert len(parts["transfer"]) == 10
        return {name: part["text"][:] for name, part in parts.items()}

    assert texts(0) == texts(0) != texts(1)


def test_parts_of_the_bundled_sentences_are_whole_and_balanced():
    table = experiment.labelled_corpus({"LABELLED_CORPUS": "bundled"})
    assert table.features["label"].names == ["negative", "positive"]
    parts = data.part(table.select(range(0, 8530, 5)), SIZES, corpus=bundled_reviews("imdb"), transfer_texts=30)
    assert [len(part) for part in parts.values()] == [40, 20, 20, 30]
    assert [sum(parts[name]["label"]) for name in SIZES] == [20, 10, 10]


def test_fewer_texts_than_wanted_shrink_the_parts_and_rare_classes_stay_in_each(capsys):
    labels = ["often"] * 20 + ["seldom"] * 3
    rows = {"text": [f"{i} {i * i} {i + 7} words" for i in range(23)], "label": labels}
    table = data.with_label_names(datasets.Dataset.from_dict(rows), "small")
    sizes = {"train": 200, "valid": 100, "test": 100}
    parts = data.part(table, sizes, corpus=corpus_of("Nothing of this."), transfer_texts=10)
    assert [len(parts[name]) for name in sizes] == [11, 5, 5]
    said = capsys.readouterr().out
    assert "23 labelled texts are too few for 400: the parts are 11, 5, 5." in said
    assert "smaller PART_SIZES leave some over" in said
    data.part(table, {"train": 12, "valid": 5, "test": 6}, corpus=corpus_of("This is a sentence."), transfer_texts=10)
    assert "too few" not in capsys.readouterr().out
    assert all(set(parts[name]["label"]) == {0, 1} for name in sizes)
    with pytest.raises(ValueError, match=r"the label 'seldom' has 2 different text.*3 parts.*LABEL_FIELD"):
        data.part(table.select(range(22)), sizes, corpus=corpus_of("Nothing."), transfer_texts=10)


def test_a_class_that_the_corpus_has_swallowed_is_said_with_counts(hundred, capsys):
    by_class = {label: [text for text, own in named(hundred) if own == label] for label in ("bad", "good")}
    with pytest.raises(ValueError, match=r"'bad' has 0 .*3 parts.*25 of its 25 texts stand in CORPUS.*another CORPUS"):
        data.part(hundred, SIZES, corpus=corpus_of(*by_class["bad"]), transfer_texts=10)
    with pytest.raises(ValueError, match=r"'bad' has 0 .*25 of its 25 texts stand in CORPUS"):
        data.part(hundred, SIZES, corpus=corpus_of(*hundred["text"]), transfer_texts=10)
    data.part(hundred, SIZES, corpus=corpus_of(*by_class["bad"][:20], *by_class["good"][:20]), transfer_texts=10)
    assert "Label 'bad': 20 of its 25 texts stand in CORPUS." in (said := capsys.readouterr().out)
    assert "Label 'good'" not in said


def test_no_text_left_to_distil_on_is_said(hundred):
    parts = data.part(hundred, SIZES, corpus=corpus_of("Nothing."), transfer_texts=1)
    assert len(parts["transfer"]) == 1
    with pytest.raises(ValueError, match=r"no text is left to distil the task on.*Lower PART_SIZES"):
        data.part(hundred, {"train": 60, "valid": 20, "test": 20}, corpus=corpus_of("Nothing."), transfer_texts=10)


def test_a_batch_is_what_the_tokenizer_itself_would_pad(tiny, hundred):
    _, tokenizer = tiny
    rows = data.encode(hundred, tokenizer, 24)
    assert rows["text"][:] == hundred["text"][:]
    assert rows["length"][:] == [len(ids) for ids in rows["input_ids"]]
    batch = next(iter(data.row_loader(rows, tokenizer, 7)))
    expected = tokenizer(rows["text"][:7], truncation=True, max_length=24, padding=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    assert batch["labels"].tolist() == rows["label"][:7]
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_unlabelled_rows_and_a_teachers_logits_go_into_batches(tiny, hundred):
    _, tokenizer = tiny
    rows = data.encode(hundred.remove_columns("label"), tokenizer, 24)
    logits = torch.randn(100, 3)
    rows = data.with_teacher_logits(rows, logits)
    loaders = data.label_loaders(rows, rows, tokenizer, batch_size=8, steps_per_epoch=5, seed=0)
    assert len(loaders["train"]) == 5
    batch = next(iter(loaders["valid"]))
    assert batch["labels"].tolist() == [IGNORED] * 8
    shortest = np.argsort(rows["length"], kind="stable")[:8]
    torch.testing.assert_close(batch["t_logits"], logits[shortest])


def test_rows_of_a_batch_have_about_one_length_and_each_pass_reads_all():
    lengths = np.random.default_rng(0).integers(5, 60, 1000)
    order = LengthGroupedShuffle(lengths, 2000, seed=3, batch_size=20)
    read = list(order)
    first, second = read[:1000], read[1000:]
    assert sorted(first) == sorted(second) == list(range(1000))
    assert first != second
    spread = [np.ptp(lengths[first[start : start + 20]]) for start in range(0, 1000, 20)]
    assert np.mean(spread) < 4 < np.mean([np.ptp(lengths[start : start + 20]) for start in range(0, 1000, 20)])
    assert list(LengthGroupedShuffle(lengths, 2000, seed=4, batch_size=20)) != read
