"""`make demo`: what it says where something is missing, and that nothing unchecked gets into the page."""

import json
import sys
import tarfile

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "notebooks" / "tools"))
import demo


@pytest.fixture
def tarballs(tmp_path, monkeypatch):
    """A folder of one small package, which is the only one that the page needs."""
    folder = tmp_path / "npm"
    (folder / "package" / "dist").mkdir(parents=True)
    (folder / "package" / "dist" / "one.js").write_text("1;\n", encoding="utf-8")
    file = folder / "owner-one-1.0.0.tgz"
    with tarfile.open(file, "w:gz") as archive:
        archive.add(folder / "package", "package")
    monkeypatch.setattr(demo, "PACKAGES", {"@owner/one@1.0.0": (demo.sha512(file), ["dist/one.js"])})
    return folder


@pytest.fixture
def student(tmp_path):
    folder = tmp_path / "student"
    for name in (*demo.MODEL, "model.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name, encoding="utf-8")
    return folder


def test_the_page_its_library_and_the_models_files_are_laid_and_nothing_else(student, tarballs, tmp_path):
    target = tmp_path / "demo"
    (target / "old").mkdir(parents=True)
    demo.lay(student, target, tarballs)
    found = {file.relative_to(target).as_posix() for file in target.rglob("*") if file.is_file()}
    assert found == {"index.html", "dist/one.js", *(f"model/{name}" for name in demo.MODEL)}
    assert (target / "model" / "onnx" / "model_quantized.onnx").read_text() == "onnx/model_quantized.onnx"


def test_a_package_of_another_hash_is_refused(student, tarballs, tmp_path):
    with (tarballs / "owner-one-1.0.0.tgz").open("ab") as file:
        file.write(b"x")
    with pytest.raises(demo.DemoError, match=r"owner-one-1\.0\.0\.tgz: its sha512 is .*, not "):
        demo.lay(student, tmp_path / "demo", tarballs)


def test_without_npm_and_without_the_model_there_is_a_sentence(student, tarballs, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(demo.DemoError, match=r"npm is missing, which fetches @owner/one@1\.0\.0"):
        demo.lay(student, tmp_path / "demo", tmp_path / "nothing")
    (student / "tokenizer.json").unlink()
    with pytest.raises(demo.DemoError, match=r"has no tokenizer\.json\. Run notebook 07"):
        demo.lay(student, tmp_path / "demo", tarballs)


def test_the_target_takes_the_student_that_the_record_names(student, tarballs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    monkeypatch.setattr(demo, "COMPRESSION", tmp_path)
    monkeypatch.setattr(demo.lay, "__defaults__", (tarballs,))
    assert demo.main() == 1
    assert "run notebook 07 first" in capsys.readouterr().out
    (tmp_path / "metrics.json").write_text(json.dumps({"folder": "student"}), encoding="utf-8")
    assert demo.main() == 0
    assert (tmp_path / "demo" / "model" / "config.json").read_text() == "config.json"
    assert "python3 -m http.server --bind 127.0.0.1 --directory demo" in capsys.readouterr().out


def test_every_pinned_package_has_the_hash_of_npm():
    for package, (hashed, names) in demo.PACKAGES.items():
        assert package.rsplit("@", 1)[1][0].isdigit()
        assert len(hashed) == 88
        assert all(name.startswith("dist/") for name in names)


def test_the_page_fetches_from_its_own_folder_alone():
    page = demo.PAGE.read_text(encoding="utf-8")
    assert "http://" not in page
    assert "https://" not in page
    assert 'from "./dist/transformers.min.js"' in page
    assert "env.allowRemoteModels = false" in page
