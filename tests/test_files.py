"""The forms of files, one by one: what is read, what is refused and by which sentence, and that no cache is stale."""

import bz2
import gzip
import hashlib
import http.server
import json
import lzma
import os
import subprocess
import sys
import threading

import datasets
import pandas as pd
import papermill
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from conftest import ROOT
from helpers import data
from helpers.files.sources import READ, files_of
from helpers.runs import experiment
from helpers.runs.records import with_contents

sys.path.insert(0, str(ROOT / "notebooks" / "tools"))
import parameter_table

ROWS = [
    ("Фильм, который; стоит\tсмотреть.", "good"),
    ('He said: "No".\nAnd left.', "bad"),
    ("", "bad"),
    (" 😀 a blank first", "good"),
    ("Schöner Film", "good"),
    ("Schöner Film", "good"),
]
TEXTS = [text for text, _ in ROWS if text]
SAID = "skipped 1 empty rows and 0 without a letter, of 6."
PACK = {
    "": lambda path: None,
    ".gz": lambda path: gzip.compress(path),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}
FRAME = pd.DataFrame(ROWS, columns=["text", "label"])


def content_of(ending):
    if ending == ".parquet":
        return FRAME.to_parquet(index=False)
    if ending in (".csv", ".tsv"):
        return FRAME.to_csv(index=False, sep="\t" if ending == ".tsv" else ",").encode()
    if ending == ".txt":
        return "".join(text.replace("\n", " ") + "\n" for text, _ in ROWS).encode()
    return FRAME.to_json(orient="records", lines=True, force_ascii=False).encode()


FORMS = [(".csv", p) for p in PACK] + [(".tsv", ".xz"), (".jsonl", ""), (".ndjson", ".gz"), (".json", ".zst")]
FORMS += [(".parquet", ""), (".txt", ""), (".txt", ".bz2")]


def write(path, content):
    path.write_bytes(content)
    return path


def form(folder, ending, packed, name="some"):
    content = content_of(ending)
    return write(folder / f"{name}{ending}{packed}", PACK[packed](content) if packed else content)


@pytest.mark.parametrize(("ending", "packed"), FORMS)
def test_each_form_gives_the_same_texts_by_the_same_rules(tmp_path, ending, packed, capsys):
    path = form(tmp_path, ending, packed)
    wanted = [text.replace("\n", " ") for text in TEXTS] if ending == ".txt" else TEXTS
    texts = data.read_texts(path)
    assert texts["text"][:] == wanted
    assert texts.column_names == ["text"]
    assert texts.cache_files, "mapped, not loaded"
    said = capsys.readouterr()
    assert said.out == f"{path.name}: {SAID}\n"
    assert said.err == ""
    assert len(data.drop_repeats(texts)) == len(wanted) - 1
    with pytest.raises(ValueError, match=rf"some{ending}.*no column 'body'. Its columns are \[.*set TEXT_FIELD"):
        data.read_texts(path, "body")
    if ending != ".txt":
        table = data.read_labelled(path)
        named = table.features["label"].int2str(table["label"][:])
        assert list(zip(table["text"], named, strict=True)) == [row for row in ROWS if row[0]]


def test_labels_by_files_of_any_form(tmp_path):
    source = {
        "good": [write(tmp_path / "one.txt", b"so good\n"), write(tmp_path / "two.jsonl", b'{"text": "as good"}\n')],
        "bad": write(tmp_path / "three.csv", b"text\nso bad\n"),
    }
    table = data.read_labelled(source)
    assert table["text"][:] == ["so good", "as good", "so bad"]
    assert table.features["label"].int2str(table["label"][:]) == ["good", "good", "bad"]


def test_a_list_a_folder_and_a_pattern(tmp_path, capsys):
    folder = tmp_path / "news of [2020]"
    (folder / "deeper").mkdir(parents=True)
    one, two = write(folder / "b.csv", b"text\nsecond\n"), write(folder / "a.txt", b"first\n")
    three = write(folder / "deeper" / "c.csv", b"text\nthird\n")
    write(folder / ".hidden.csv", b"")
    write(folder / "README.md", b"# What this is")
    assert data.read_texts([one, str(two)])["text"][:] == ["second", "first"]
    capsys.readouterr()
    assert data.read_texts(folder)["text"][:] == ["first", "second"]
    assert capsys.readouterr().out == "news of [2020]: 2 files are read; left out by their names: README.md.\n"
    pattern = str(tmp_path / "news*" / "**" / "*.csv")
    assert files_of(pattern) == [one, three]
    assert data.read_texts(pattern)["text"][:] == ["second", "third"]
    assert files_of([pattern, two]) == [one, three, two]


def lfs(folder):
    return write(folder / "a.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n")


def cut(ending, packed, share=0.6):
    def make(folder):
        frame = pd.DataFrame({"text": [hashlib.sha256(bytes([i % 256, i // 256])).hexdigest() for i in range(3000)]})
        content = frame.to_parquet() if ending == ".parquet" else frame.to_csv(index=False).encode()
        content = PACK[packed](content) if packed else content
        return write(folder / f"a{ending}{packed}", content[: int(len(content) * share)])

    return make


def of(name, content):
    return lambda folder: write(folder / name, content)


def parquet(name, **columns):
    def make(folder):
        pq.write_table(pa.table(columns), folder / name)
        return folder / name

    return make


REFUSED = [
    (lambda folder: folder / "a.csv", "a.csv: no such file. CORPUS and LABELLED_CORPUS name a file"),
    (lambda folder: folder / "*.csv", "*.csv: no file has a name of this pattern"),
    (lambda folder: folder, "no file in this folder is in a form that can be read. " + READ),
    (lambda folder: [], "The list of files is empty"),
    (of("a.xlsx", b"PK\3\4"), "a.xlsx: its name does not say what it is. " + READ),
    (of("a.csv.zip", b"PK\3\4"), "a.csv.zip: its name does not say what it is. " + READ),
    (of("a.parquet.gz", b""), "a.parquet.gz: Parquet is compressed within. Unpack the file to a.parquet."),
    (of("a.csv", b""), "a.csv: the file is empty."),
    (of("a.txt", b" \n\n"), "a.txt: the file is empty."),
    (of("a.jsonl.gz", gzip.compress(b"")), "a.jsonl.gz: the file is empty."),
    (
        of("a.csv", gzip.compress(b"text\na")),
        "a.csv: the file is compressed as .gz, which its name does not say. Rename it to a.csv.gz.",
    ),
    (
        of("a.csv.gz", b"text\nabc\n"),
        "a.csv.gz: the file is not compressed as .gz, which its name does not say. Rename it to a.csv.",
    ),
    (of("a.csv.gz", lzma.compress(b"text\na")), "which its name does not say. Rename it to a.csv.xz."),
    (of("a.csv", b"PK\3\4 and so on"), "a.csv: the file is a zip archive, or a spreadsheet such as .xlsx."),
    (parquet("a.txt", text=["a"]), "a.txt: the file is a Parquet file. Give it a name that ends in .parquet."),
    (lfs, "a.csv: the file is a pointer of Git LFS, not the file itself. Run `git lfs pull`."),
    (cut(".csv", ".gz"), "a.csv.gz: not readable as .csv.gz: "),
    (cut(".csv", ".bz2"), "a.csv.bz2: not readable as .csv.bz2: "),
    (cut(".csv", ".xz"), "a.csv.xz: not readable as .csv.xz: "),
    (cut(".csv", ".zst"), "The file is cut short or damaged: fetch or make it again."),
    (cut(".parquet", ""), "a.parquet: not readable as Parquet: "),
    (of("a.parquet", b"text\na\n"), "a.parquet: not readable as Parquet: "),
    (parquet("a.parquet", text=pa.array([], pa.string())), "a.parquet: the file has no rows."),
    (parquet("a.parquet", text=[["a", "b"]]), "column 'text' is of the kind list<"),
    (of("a.csv", b"text\n"), "a.csv: the file has a row of names and no other."),
    (of("a.csv", b"id,text\n\n1,a,b\n"), "row 2 (line 3) has 3 fields, the first row 2. A text that holds"),
    (of("a.csv", b"text;label;\n\na;pos;;\n"), "row 2 (line 3) has 4 fields, the first row 3."),
    (of("a.csv", b"id,text\r\r\n1,a,b\r\r\n"), "row 2 (line 2) has 3 fields, the first row 2."),
    (of("a.csv", b"text,id\na text on\ntwo lines,1\n"), "row 2 (line 2) has 1 fields, the first row 2."),
    (of("a.csv", b'id,text\n1,"a ""b"" c"\n2,"a "b" c"\n'), "row 3 (line 3): ',' expected after '\"'. A text that"),
    (of("a.csv", b'id,text\n1,a\n2,"a\nb\n'), "row 3 (line 3): unexpected end of data"),
    (of("a.csv", b"id,text\n1,a\rb\n2,c\n"), "row 2 (line 2): new-line character seen in unquoted field. A text"),
    (of("a.csv", b"text,text\na,b\n"), "two columns are called 'text'. Give one of them another name."),
    (of("a.csv", b"text\nx\0y\n"), "line 2 holds a NUL, which texts do not have."),
    (of("a.csv", "text\nЖ".encode("utf-16")[:-1]), "not readable in utf-16: line 2 holds other bytes."),
    (of("a.csv", "text\nZażółć gęślą jaźń, łąka".encode("cp1250")), "not clearly cp1251 or cp1252. Save the file as"),
    (of("a.csv", "text\nСъешь же ещё этих булок".encode("koi8-r")), "not clearly cp1251 or cp1252. Save the file as"),
    (of("a.csv", "text\nà la\n".encode("cp1252")), "not clearly cp1251 or cp1252. Save the file as UTF-8."),
    (of("a.jsonl", b'{"text": "a"}\n{"text": "b"\n'), "a.jsonl: not readable as JSON lines: line 2: "),
    (of("a.jsonl", b'{"text": "a"}\n3\n'), "line 2: it is a str. Each line has to be one object"),
    (of("a.json", b'[{"text": "a"}, {"text": "b"}]'), "becomes JSON lines by: jq -c '.[]' a.json > a.jsonl"),
    (of("a.jsonl", b'{"text": "a"}\n{"text": ["b"]}\n'), "line 2: 'text' is a list, not a text."),
    (of("a.jsonl", b'{"text": "a \\ud83d"}\n'), r"line 1: 'text' holds half of a character ('\ud83d'"),
    (of("a.jsonl", '{"text": "é"}'.encode("cp1252")), "a.jsonl: not readable in utf-8-sig: line 1 holds other bytes"),
]


@pytest.mark.parametrize(("make", "said"), REFUSED)
def test_what_cannot_be_read_is_refused_by_a_sentence(tmp_path, make, said):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        data.read_texts(make(tmp_path))
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("encoding", ["utf_16_le", "utf_16_be"])
def test_utf16_needs_no_byte_order_mark_where_a_row_names_the_columns(tmp_path, encoding, capsys):
    path = write(tmp_path / "a.csv", "id,text\n1,привет мир\n".encode(encoding))
    assert data.read_texts(path)["text"][:] == ["привет мир"]
    assert capsys.readouterr().out == f"a.csv is not UTF-8: read as {encoding}.\n"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("déjà vu", "cp1252"),
        ("It’s “good” – really…", "cp1252"),
        ("Größe, naïve façade, mañana", "cp1252"),
        ("привет", "cp1251"),
        ("Это iPhone; и это — «Ёлка»", "cp1251"),
    ],
)
def test_the_code_page_of_a_short_text_is_found(tmp_path, text, encoding, capsys):
    path = write(tmp_path / "a.tsv", f"text\n{text}\n".encode(encoding))
    assert data.read_texts(path)["text"][:] == [text]
    assert capsys.readouterr().out == f"a.tsv is not UTF-8: read as {encoding}.\n"


def test_the_separator_is_the_one_that_fits_the_rows(tmp_path):
    rows = [f"{i % 2}\tso good{', really' * (2 - i % 3)}, number {i}" for i in range(12)]
    path = write(tmp_path / "a.csv", "\n".join(rows).encode())
    assert data.read_labelled(path, 1, 0)["text"][0] == "so good, really, really, number 0"
    path = write(tmp_path / "b.csv", b"text\na, b\nc; d\n")
    assert data.read_texts(path)["text"][:] == ["a, b", "c; d"]
    path = write(tmp_path / "b.csv", b"text\na, b\nc; d\te\n")
    with pytest.raises(ValueError, match=r"b\.csv: not readable as CSV: row \d .* has 2 fields, the first row 1"):
        data.read_texts(path)
    path = write(tmp_path / "c.csv", b"text\na, b\nc, d, e\n")
    assert data.read_texts(path)["text"][:] == ["a, b", "c, d, e"]
    two = {"x": write(tmp_path / "d.csv", b"one, two\nthree, four\n"), "y": path}
    with pytest.raises(ValueError, match=r"d\.csv: the separator may be ',' or ';' or '\\t': .*Give the file a row"):
        data.read_labelled(two, 0)
    # One bad row among many does not make the separator another one.
    broken = [f"text {i}\t{i}" for i in range(30)] + ["no tab"]
    two = {"x": write(tmp_path / "e.csv", "\n".join(broken).encode()), "y": path}
    with pytest.raises(
        ValueError, match=r"e\.csv: not readable as CSV: row 31 \(line 31\) has 1 fields, the first row 2"
    ):
        data.read_labelled(two, 0)


def test_numbers_and_classes_become_labels_by_their_spelling_and_name(tmp_path):
    lines = '{"text": "a", "label": 1}\n{"text": "b", "label": 1.50}\n{"label": true, "text": "c"}\n'
    table = data.read_labelled(write(tmp_path / "a.jsonl", lines.encode()))
    assert table.features["label"].names == ["1", "1.50", "true"]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    table = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, 1]}, features=features)
    table.to_parquet(tmp_path / "a.parquet")
    table = data.read_labelled(tmp_path / "a.parquet")
    assert table.features["label"].int2str(table["label"][:]) == ["yes", "no", "yes"]


def test_a_cache_is_never_older_than_its_file(tmp_path):
    path = write(tmp_path / "a.csv", b"text\none\n")
    before = path.stat()
    assert data.read_texts(path)["text"][:] == ["one"]
    write(path, b"text\ntwo\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert data.read_texts(path)["text"][:] == ["two"]


def test_what_is_made_of_several_files_is_named_by_their_content(tmp_path):
    one, two = write(tmp_path / "1.csv", b"text\none\n"), write(tmp_path / "2.csv", b"text\ntwo\n")
    for source in ([str(one), str(two)], str(tmp_path / "*.csv"), str(tmp_path), {"x": str(one), "y": [str(two)]}):
        values = {"CORPUS": source, "OUTPUT_DIR": "here"}
        before = with_contents(values)
        assert before == with_contents(values)
        two.write_bytes(two.read_bytes() + b"three\n")
        assert before != with_contents(values)


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as `load_dataset` needs: one data set of Parquet files."""

    files = {}  # noqa: RUF012 filled by the test
    asked = []  # noqa: RUF012

    def log_message(self, *_):
        pass

    def answer(self, content, **headers):
        self.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self):
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        sizes = [
            {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
            for n, c in self.files.items()
        ]
        if path.startswith("/api/datasets/someone/reviews"):
            rest = path.removeprefix("/api/datasets/someone/reviews")
            if rest.startswith("/tree/"):
                under = rest.split("/", 3)[3] if rest.count("/") > 2 else ""
                return self.answer(
                    json.dumps([s for s in sizes if s["path"].startswith(under)]).encode(),
                    Content_Type="application/json",
                )
            if rest in ("", "/revision/main", f"/revision/{'0' * 40}"):
                siblings = [{"rfilename": name} for name in self.files]
                info = {
                    "id": "someone/reviews",
                    "sha": "0" * 40,
                    "siblings": siblings,
                    "private": False,
                    "gated": False,
                }
                return self.answer(
                    json.dumps(info | {"disabled": False, "downloads": 0, "likes": 0, "tags": []}).encode(),
                    Content_Type="application/json",
                )
        if path.startswith("/datasets/someone/reviews/resolve/"):
            name = path.split("/", 6)[6]
            if name in self.files:
                content = self.files[name]
                etag = f'"{hashlib.sha1(content).hexdigest()}"'
                return self.answer(content, ETag=etag, X_Repo_Commit="0" * 40)
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound" if "reviews" not in path else "EntryNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        self.asked.append(f"POST {self.path} {body}")
        wanted = json.loads(body).get("paths", []) if body.startswith(b"{") else []
        sizes = [
            {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
            for n, c in self.files.items()
            if n in wanted
        ]
        self.answer(json.dumps(sizes).encode(), Content_Type="application/json")


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hub.asked.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_data_set_on_the_hub_is_read(hub, tmp_path):
    readme = """---
configs:
- config_name: film
  data_files: [{split: train, path: film.parquet}, {split: test, path: film_test.parquet}]
- config_name: book
  data_files: [{split: train, path: book.parquet}]
---
"""
    features = datasets.Features({"body": datasets.Value("string"), "mark": datasets.ClassLabel(names=["no", "yes"])})
    film = {"body": ["one, two", "", "three"], "mark": [1, 0, 0]}
    datasets.Dataset.from_dict(film, features=features).to_parquet(tmp_path / "film.parquet")
    datasets.Dataset.from_dict({"body": ["four", "five"], "mark": [1, -1]}, features=features).to_parquet(
        tmp_path / "t"
    )
    Hub.files = {"README.md": readme.encode(), "film.parquet": (tmp_path / "film.parquet").read_bytes()}
    Hub.files |= {"film_test.parquet": (tmp_path / "t").read_bytes(), "book.parquet": (tmp_path / "t").read_bytes()}
    code = """
from helpers.runs.experiment import labelled_corpus, read_corpus
from helpers import data
for name in ("reviews:film", "reviews:film:test", "reviews:book", "reviews:paper", "reviews:film:dev", "nothing"):
    try:
        print(read_corpus({"CORPUS": "hub:someone/" + name, "TEXT_FIELD": "body"})["text"][:])
    except ValueError as error:
        print(str(error).replace("\\n", " "))
labels = {"LABELLED_TEXT_FIELD": "body", "LABEL_FIELD": "mark"}
table = labelled_corpus({"LABELLED_CORPUS": "hub:someone/reviews:film", **labels})
print(table.features["label"].int2str(table["label"][:]))
for name in ("film:test",):
    try:
        labelled_corpus({"LABELLED_CORPUS": "hub:someone/reviews:" + name, **labels})
    except ValueError as error:
        print(error)
"""
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    environment |= {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr[-3000:] + "\n".join(Hub.asked)
    said = run.stdout.splitlines()
    assert said[:2] == [
        "hub:someone/reviews:film: skipped 1 empty rows and 0 without a letter, of 3.",
        "['one, two', 'three']",
    ]
    assert said[2:4] == ["['four', 'five']", "['four', 'five']"]
    assert said[4].startswith("hub:someone/reviews:paper: the hub gives no such data set, or cannot be reached (")
    assert "film" in said[4], "the configurations that there are"


def test_parameters_read_from_each_kind_of_source(tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.runs.records.ROOT", tmp_path)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "news").mkdir()
    write(tmp_path / "news" / "a.csv", b"text,label\nso good,x\n")
    write(tmp_path / "news" / "b.csv", b"text,label\nso bad,y\n")
    for source in ("news", "news/*.csv", ["news/a.csv", "news/b.csv"]):
        assert experiment.read_corpus({"CORPUS": source, "TEXT_FIELD": "text"})["text"][:] == ["so good", "so bad"]
        fields = {"LABELLED_TEXT_FIELD": "text", "LABEL_FIELD": "label"}
        assert experiment.labelled_corpus({"LABELLED_CORPUS": source, **fields})["label"][:] == [0, 1]


MEASURE = """
import sys, threading
from pathlib import Path
from helpers import data


def anonymous_kb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def watch():
    global peak
    while not done.wait(0.01):
        peak = max(peak, anonymous_kb())


before = peak = anonymous_kb()
done = threading.Event()
thread = threading.Thread(target=watch)
thread.start()
rows = len(data.read_texts(sys.argv[1]))
done.set()
thread.join()
print(rows, (peak - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("ending", [".csv", ".jsonl.gz", ".parquet", ".txt.zst"])
def test_memory_does_not_grow_with_the_file(tmp_path, ending):
    texts = [f"text {i}, and more of it {i * 7919} {'so good ' * 20}" for i in range(300_000)]
    frame, path = pd.DataFrame({"text": texts}), tmp_path / f"many{ending}"
    if ending == ".csv":
        frame.to_csv(path, index=False)
    elif ending == ".parquet":
        frame.to_parquet(path, row_group_size=len(frame))
    elif ending == ".txt.zst":
        path.write_bytes(PACK[".zst"]("\n".join(texts).encode()))
    else:
        frame.to_json(path, orient="records", lines=True)
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MEASURE, str(path)]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    rows, grown_mb = map(int, said.split()[-2:])
    assert rows == 300_000
    assert grown_mb < 70, "the texts alone are 64 MB as bytes, and more as Python's strings"


SMALL = {"TEACHER_STEPS": 4, "MAX_STEPS": 4, "FINE_TUNING_EPOCHS": 1, "FINE_TUNING_LEARNING_RATES": [1e-3]}
SMALL |= {"TASK_EPOCHS": 1}


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".csv", ".tsv.xz", ".jsonl.gz", ".parquet", ".txt.zst", "several"])
def test_notebooks_03_and_06_run_from_each_form(tmp_path, tiny_folder, ending):
    corpus = pd.read_csv(ROOT / "tests" / "data" / "sentences.csv")
    labelled = pd.read_csv(ROOT / "tests" / "data" / "labelled.csv")
    _, plain, packed = (".csv.gz" if ending == "several" else f"{ending}.").split(".")[:3]

    def wrote(frame, name, column):
        path = tmp_path / f"{name}.{plain}{'.' * bool(packed)}{packed}"
        content = {
            "csv": lambda: frame.to_csv(index=False).encode(),
            "tsv": lambda: frame.to_csv(index=False, sep="\t").encode(),
            "jsonl": lambda: frame.to_json(orient="records", lines=True).encode(),
            "parquet": lambda: frame.to_parquet(index=False),
            "txt": lambda: "\n".join(frame[column]).encode(),
        }[plain]()
        path.write_bytes(PACK[f".{packed}"](content) if packed else content)
        return str(path)

    values = yaml.safe_load((ROOT / "notebooks" / "parameters" / "tiny.yaml").read_text(encoding="utf-8")) | SMALL
    values |= {"TEACHER": str(tiny_folder), "OUTPUT_DIR": str(tmp_path / "artifacts")}
    if ending == "several":
        wrote(corpus[:20], "news 1", "text")
        wrote(corpus[20:], "news 2", "text")
        values["CORPUS"] = str(tmp_path / "news *.csv.gz")
        values["LABELLED_CORPUS"] = [wrote(labelled[::2], "one", "review"), wrote(labelled[1::2], "two", "review")]
    else:
        values["CORPUS"] = wrote(corpus, "corpus", "text")
        values["LABELLED_CORPUS"] = wrote(labelled, "labelled", "review")
    if plain == "txt":
        parts = labelled.groupby("language")
        values["LABELLED_CORPUS"] = {language: wrote(part, language, "review") for language, part in parts}
        values["LABELLED_TEXT_FIELD"] = "text"
    for number in ("03_runner", "06_sentiment_evaluation"):
        used = {name: value for name, value in values.items() if name in parameter_table.by_notebook()[number[:2]]}
        notebook, copy = ROOT / "notebooks" / f"{number}.ipynb", tmp_path / f"{number}.ipynb"
        papermill.execute_notebook(notebook, copy, used, progress_bar=False, kernel_name="python3")
        assert (tmp_path / "artifacts" / number / "metrics.json").is_file()
    record = json.loads((tmp_path / "artifacts" / number / "metrics.json").read_text(encoding="utf-8"))
    assert record["labels"] == ["english", "german", "russian"]
