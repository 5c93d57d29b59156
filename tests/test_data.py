import bz2
import csv
import gzip
import os
import subprocess
import sys

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from helpers import data
from helpers.data import IGNORED, masked
from helpers.models import load_teacher

RUSSIAN = ["Фильм, который стоит смотреть.", 'Он сказал: "да"; и ушёл.', "Ёлка\tи снег."]


def write_csv(path, texts, separator=",", encoding="utf-8", opener=open):
    rows = [f"id{separator}review"]
    rows += [f'{i}{separator}"{text.replace(chr(34), chr(34) * 2)}"' for i, text in enumerate(texts)]
    with opener(path, "wb") as file:
        file.write("\r\n".join(rows).encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1251"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize(("suffix", "opener"), [("", open), (".gz", gzip.open), (".bz2", bz2.open)])
def test_read_texts_reads_each_form(tmp_path, encoding, separator, suffix, opener):
    path = write_csv(tmp_path / f"texts.csv{suffix}", RUSSIAN, separator, encoding, opener)
    texts = data.read_texts(path, "review")
    assert texts.column_names == ["text"]
    assert texts["text"][:] == RUSSIAN


def test_read_texts_keeps_words_that_look_like_missing_values_and_line_breaks(tmp_path):
    wanted = ["NA", "null", "1e5", "one\nline more"]
    assert data.read_texts(write_csv(tmp_path / "a.csv", wanted), "review")["text"][:] == wanted


def test_read_texts_is_mapped_not_loaded(tmp_path):
    texts = data.read_texts(write_csv(tmp_path / "a.csv", RUSSIAN), "review")
    assert texts.cache_files


def test_read_texts_skips_empty_rows_and_says_so(tmp_path, capsys):
    path = write_csv(tmp_path / "a.csv", ["one", "", "  ", "two"])
    assert data.read_texts(path, "review")["text"][:] == ["one", "two"]
    assert "skipped 2 empty rows and 0 without a letter, of 4." in capsys.readouterr().out


def test_rows_without_a_letter_of_any_script_are_skipped_counted_and_said(tmp_path, capsys):
    path = write_csv(tmp_path / "a.csv", ["one", "", "12.5", "ё", "   ", "...", "字"])
    assert data.read_texts(path, "review")["text"][:] == ["one", "ё", "字"]
    assert "a.csv: skipped 2 empty rows and 2 without a letter, of 7." in capsys.readouterr().out


def test_read_texts_does_not_lower_the_processes_limit_on_csv_fields(tmp_path):
    before = csv.field_size_limit(10**6)
    try:
        data.read_texts(write_csv(tmp_path / "a.csv", ["one"]), "review")
        assert csv.field_size_limit() == 10**6
    finally:
        csv.field_size_limit(before)


def test_read_texts_sees_an_edited_file(tmp_path):
    path = tmp_path / "a.csv"
    assert data.read_texts(write_csv(path, ["one"]), "review")["text"][:] == ["one"]
    assert data.read_texts(write_csv(path, ["another"]), "review")["text"][:] == ["another"]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, "no such file"),
        (b"", ValueError, "the file is empty"),
        (b"id,body\n1,x\n", ValueError, r"no column 'text'. Its columns are \['id', 'body'\]"),
        (b"id;body;text2\n1;x;y\n", ValueError, r"Its columns are \['id', 'body', 'text2'\]"),
        (b"id,text\n1,\n", ValueError, "no row of column 'text' holds a text"),
        (b"id,text\n1,a,b,c\n", ValueError, r"row 2 \(line 2\) has 4 fields, the first row 2"),
        (b"id,text\n1,a\n2,b,c\n", ValueError, "not readable as CSV"),
    ],
)
def test_read_texts_names_what_is_wrong(tmp_path, content, error, message):
    path = tmp_path / "bad.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        data.read_texts(path)
    assert "bad.csv" in str(caught.value)


# Rows in the form of lenta-ru-news.csv.gz, invented: quotes, line breaks and commas within texts, a row without text, a
# repeat.
LENTA = [
    ("Ночью в город пришла зима", "Снег шёл всю ночь, и утром город был белым.", "Россия", "Погода"),
    ("Музей открыл новый зал", 'Зал назвали "Северный". В нём 40 картин, из них "Пять берёз".', "Культура", "Музеи"),
    ("Мост закрыт на ремонт", "Мост закрыт до осени.\nОбъезд отмечен знаками.", "Россия", "Все"),
    ("Учёные сосчитали птиц", "Птиц оказалось 1 204, на треть больше, чем прежде.", "Наука и техника", "Звери"),
    ("Поезд опоздал на сутки", "", "Россия", "Транспорт"),
    ("Хоккеисты выиграли матч", 'Матч кончился со счётом 3:2. "Мы старались", — сказал тренер.', "Спорт", "Хоккей"),
    ("Биржа закрылась ростом", "Индекс вырос на 1,5 процента; рубль почти не изменился.", "Экономика", "Рынки"),
    ("В реке нашли якорь", "Якорь пролежал в реке двести лет.\n\nЕго передадут музею.", "Россия", "Находки"),
    ("Книга вышла вновь", "Роман издали в третий раз, теперь с рисунками.", "Культура", "Книги"),
    ("Ночью в город пришла зима", "Снег шёл всю ночь, и утром город был белым.", "Россия", "Погода"),
    ("Программист написал игру", "Игра занимает 4 килобайта. Код открыт.", "Интернет и СМИ", ""),
    ("Кот вернулся домой", "Кот прошёл 300 километров и вернулся к хозяйке, в Тверь.", "Из жизни", "Звери"),
]


def test_lentas_news_are_read_as_they_are_published(tmp_path, capsys, tiny):
    path = tmp_path / "lenta-ru-news.csv.gz"
    with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["url", "title", "text", "topic", "tags", "date"])
        for number, (title, text, topic, tags) in enumerate(LENTA):
            address = f"https://lenta.ru/news/2018/12/{number + 1:02}/example/"
            writer.writerow([address, title, text, topic, tags, f"2018/12/{number + 1:02}"])
    texts = data.read_texts(path)
    assert texts["text"][:] == [text for _, text, _, _ in LENTA if text]
    assert "lenta-ru-news.csv.gz: skipped 1 empty rows and 0 without a letter, of 12." in capsys.readouterr().out
    assert len(data.drop_repeats(texts)) == 10
    loaders = data.masked_lm_loaders(texts, tiny[1], max_length=16, batch_size=4)
    assert len(next(iter(loaders["train"]))["input_ids"]) == 4


def test_bytes_that_stop_being_utf8_after_the_sample_are_named(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_bytes(b"text\n" + b"plain words here\n" * 70_000 + "Ёлка\n".encode("cp1251"))
    with pytest.raises(ValueError, match=r"bad\.csv: not readable in utf-8: line 70002 holds other bytes"):
        data.read_texts(path)


def test_bundled_reviews():
    imdb, tomatoes = data.bundled_reviews("imdb"), data.bundled_reviews("rotten_tomatoes")
    assert (len(imdb), len(tomatoes)) == (25_000, 8_530)
    assert sum(imdb["label"][:]) == 12_500
    assert not any("<br" in text for text in imdb["text"][:])
    with pytest.raises(ValueError, match="choose one of"):
        data.bundled_reviews("yelp")


def test_drop_repeats_keeps_the_first_of_each_in_order():
    texts = datasets.Dataset.from_dict({"text": ["b", "a", "b", "c", "a"]})
    assert data.drop_repeats(texts)["text"][:] == ["b", "a", "c"]


def rows_of(dataset):
    return [list(ids) for ids in dataset["input_ids"][:]]


def test_packing_keeps_every_token_once_and_in_order(tiny, sentences):
    _, tokenizer = tiny
    tokens = masked.token_ids(sentences, tokenizer)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    rows = rows_of(masked._blocks(tokens, tokenizer, 16, pack=True))
    assert all(row[0] == cls and row[-1] == sep and len(row) <= 16 for row in rows)
    assert sum(len(row) < 15 for row in rows) <= 1
    packed = [token for row in rows for token in row if token not in (cls, sep)]
    assert packed == [token for ids in tokens["input_ids"][:] for token in ids]


def test_texts_stay_apart_within_a_packed_row(tiny):
    _, tokenizer = tiny
    texts = datasets.Dataset.from_dict({"text": ["the cat", "the dog"]})
    row = rows_of(masked._blocks(masked.token_ids(texts, tokenizer), tokenizer, 64, pack=True))[0]
    assert tokenizer.decode(row) == "[CLS] the cat [SEP] the dog [SEP]"


def test_without_packing_a_row_is_what_the_tokenizer_gives(tiny, sentences):
    _, tokenizer = tiny
    rows = rows_of(masked._blocks(masked.token_ids(sentences, tokenizer), tokenizer, 12, pack=False))
    assert rows == tokenizer(sentences["text"][:], truncation=True, max_length=12)["input_ids"]


def test_batches_are_dicts_of_int64(tiny, sentences):
    _, tokenizer = tiny
    for pack in (True, False):
        for loader in data.masked_lm_loaders(sentences, tokenizer, max_length=16, batch_size=4, pack=pack).values():
            for batch in loader:
                assert set(batch) == {"input_ids", "attention_mask", "labels"}
                assert len({tuple(value.shape) for value in batch.values()}) == 1
                assert all(value.dtype == torch.int64 for value in batch.values())
                padded = batch["attention_mask"] == 0
                assert (batch["input_ids"][padded] == tokenizer.pad_token_id).all()
                assert (batch["labels"][padded] == IGNORED).all()


def test_blocks_whose_tokens_all_stay_are_renumbered_and_others_left_out():
    batch = {
        "input_ids": torch.tensor([[2, 7, 3, 0], [2, 9, 3, 0], [2, 3, 7, 7], [2, 7, 3, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0]]),
        "labels": torch.tensor([[IGNORED, 7, IGNORED, IGNORED]] * 2 + [[IGNORED] * 3 + [0], [IGNORED, 9, IGNORED, 3]]),
    }
    # Row 9 is gone: the second block reads it, the last one would have to predict it.
    old, new = data.renumbered(batch, [0, 7, 2, 3])
    assert all(torch.equal(old[key], batch[key][[0, 2]]) for key in batch)
    assert new["input_ids"].tolist() == [[2, 1, 3, 0], [2, 3, 1, 1]]
    assert torch.equal(new["attention_mask"], batch["attention_mask"][[0, 2]])
    assert new["labels"].tolist() == [[IGNORED, 1, IGNORED, IGNORED], [IGNORED] * 3 + [0]]
    assert [len(each["input_ids"]) for each in data.renumbered(batch, [0])] == [0, 0]


def test_no_text_is_on_both_sides(tiny):
    _, tokenizer = tiny
    # Each text is one letter of its own, three times over, so that a token names its text.
    words = [word for word in tokenizer.get_vocab() if word.isalpha() and len(tokenizer.tokenize(word)) == 1]
    assert len(words) > 50
    texts = datasets.Dataset.from_dict({"text": [" ".join([word] * 3) for word in words] * 2})
    loaders = data.masked_lm_loaders(texts, tokenizer, max_length=8, probability=0.0, valid_masks=10**9)
    seen = {key: {t for ids in loader.dataset["input_ids"][:] for t in ids} for key, loader in loaders.items()}
    assert seen["train"] & seen["valid"] <= set(tokenizer.all_special_ids)
    assert len(seen["valid"] - set(tokenizer.all_special_ids)) == len(words) // 10


def labels_of(loader):
    return torch.cat([batch["labels"][batch["labels"] != IGNORED] for batch in loader])


def test_validation_masks_are_fixed_and_training_masks_fresh(tiny, sentences):
    _, tokenizer = tiny
    torch.manual_seed(1)
    one = data.masked_lm_loaders(sentences, tokenizer, max_length=16, batch_size=4)
    torch.manual_seed(2)
    other = data.masked_lm_loaders(sentences, tokenizer, max_length=16, batch_size=7)
    assert torch.equal(labels_of(one["valid"]), labels_of(one["valid"]))
    assert torch.equal(labels_of(one["valid"]), labels_of(other["valid"]))
    rows = [one["train"].dataset[i] for i in range(8)]
    collate = one["train"].collate_fn
    assert not torch.equal(collate(rows)["labels"], collate(rows)["labels"])
    torch.manual_seed(3)
    first = collate(rows)["labels"]
    torch.manual_seed(3)
    assert torch.equal(first, collate(rows)["labels"])


def test_masking_is_berts(tiny):
    _, tokenizer = tiny
    collate = data.MaskingCollator(tokenizer)
    special = set(tokenizer.all_special_ids)
    ordinary = [i for i in range(len(tokenizer)) if i not in special]
    original = torch.tensor(np.random.default_rng(0).choice(ordinary, (400, 500)))
    original[:, 0], original[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
    ids, labels = collate.mask(original.clone(), torch.Generator().manual_seed(0))
    asked = labels != IGNORED
    assert not asked[:, [0, -1]].any()
    assert torch.equal(labels[asked], original[asked])
    assert torch.equal(ids[~asked], original[~asked])
    count = asked.sum().item()
    shares = {
        0.15: count / (400 * 498),
        0.8: (ids[asked] == tokenizer.mask_token_id).sum().item() / count,
        0.1: ((ids[asked] != tokenizer.mask_token_id) & (ids[asked] != labels[asked])).sum().item() / count,
    }
    for expected, found in shares.items():
        assert found == pytest.approx(expected, abs=0.01)


def test_every_row_is_read_once_before_any_is_read_twice(engine):
    def read(seed):
        loader = DataLoader(range(10), batch_size=2, sampler=data.EndlessShuffle(10, 4, seed))
        loader = engine.prepare(loader)
        return [row for _ in range(5) for batch in loader for row in batch.tolist()]

    rows = read(0)
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10] != rows[10:]
    assert read(0) == rows
    assert read(1) != rows


def test_steps_per_epoch(tiny, sentences):
    _, tokenizer = tiny
    loader = data.masked_lm_loaders(sentences, tokenizer, max_length=16, batch_size=4, steps_per_epoch=50)["train"]
    assert [len(batch["input_ids"]) for batch in loader] == [4] * 50


def test_tokens_are_cached_from_process_to_process(tmp_path, tiny_folder):
    path = write_csv(tmp_path / "a.csv", [f"the cat number {i}" for i in range(20)])
    texts = data.read_texts(path, "review")
    first = masked.token_ids(texts, load_teacher(tiny_folder)[1])
    (file,) = {entry["filename"] for entry in first.cache_files}
    written = os.stat(file).st_mtime_ns
    code = (
        "from helpers import data; from helpers.data import masked; from helpers.models import load_teacher; "
        f"tokenizer = load_teacher({str(tiny_folder)!r})[1]; tokenizer(['the cat']); "
        f"tokens = masked.token_ids(data.read_texts({str(path)!r}, 'review'), tokenizer); "
        "print(tokens.cache_files[0]['filename'])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == file
    assert os.stat(file).st_mtime_ns == written


def test_read_texts_reads_what_pandas_writes(tmp_path):
    pd.DataFrame({"text": ["one, two", "three"]}).to_csv(tmp_path / "a.csv")
    assert data.read_texts(tmp_path / "a.csv")["text"][:] == ["one, two", "three"]


def test_read_texts_takes_a_very_long_text(tmp_path):
    path = write_csv(tmp_path / "a.csv", ["word " * 40_000])
    assert data.read_texts(path, "review")["text"][:] == ["word " * 40_000]


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["one", "one"], {}, r"1 different text\(s\)"),
        (["one", "two"], {"max_length": 2}, "at least 3"),
    ],
)
def test_loaders_name_what_is_wrong(tiny, texts, options, message):
    with pytest.raises(ValueError, match=message):
        data.masked_lm_loaders(datasets.Dataset.from_dict({"text": texts}), tiny[1], **options)


def test_defaults_give_twenty_thousand_validation_masks():
    loaders = data.masked_lm_loaders(data.bundled_reviews("imdb"), load_teacher("minilm")[1])
    assert len(labels_of(loaders["valid"])) >= 20_000
