"""A model pushed to a hub on this machine, and what is found there afterwards."""

import base64
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForMaskedLM, AutoTokenizer

from conftest import ROOT
from helpers import compression
from helpers.runs import experiment, hub

PUBLISHED = ["README.md", "config.json", "model.safetensors", "onnx/model.onnx", "tokenizer.json"]
PUBLISHED += ["tokenizer_config.json"]


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as an upload asks for: its repositories are folders under `root`."""

    root, stored, asked, visibility = None, {}, [], None

    def log_message(self, *_):
        pass

    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        return self.rfile.read(int(self.headers["Content-Length"]))

    def do_PUT(self):
        body = self.body()
        self.stored[hashlib.sha256(body).hexdigest()] = body
        self.answer({})

    def do_POST(self):
        path, body = self.path.partition("?")[0], self.body()
        self.asked.append((path, self.headers.get("Authorization")))
        address = f"http://127.0.0.1:{self.server.server_port}"
        if path == "/api/repos/create":
            type(self).visibility = json.loads(body)
            return self.answer({"url": f"{address}/someone/student", "name": "someone/student", "id": "1"})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in path:
            found = [each["path"] for each in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith((".safetensors", ".onnx")) else "regular" for name in found}
            files = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            return self.answer({"files": files})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                each | {"actions": {"upload": {"href": f"{address}/lfs/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] in ("file", "lfsFile"):
                    is_large = line["key"] == "lfsFile"
                    content = self.stored[value["oid"]] if is_large else base64.b64decode(value["content"])
                    file = self.root / value["path"]
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(content)
            commit = f"{address}/someone/student/commit/{'0' * 40}"
            return self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": commit})
        return self.answer({"error": f"no {path}"}, 404)


@pytest.fixture
def server(tmp_path):
    """The address of an empty hub; what is pushed there lies under tmp_path/hub."""
    Hub.root, Hub.stored, Hub.asked, Hub.visibility = tmp_path / "hub", {}, [], None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def push(server, folder, repo_id="someone/student", token="hf_secret"):
    """`push_to_hub` in a process of its own: the library reads its settings when it is imported."""
    code = "import sys; from helpers.runs.hub import push_to_hub; print(push_to_hub(*sys.argv[1:]).commit_url)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": server, "HF_HOME": str(Hub.root) + "-home", "HF_HUB_DISABLE_XET": "1"}
    environment |= {"PYTHONPATH": str(ROOT)} | ({"HF_TOKEN": token} if token else {})
    command = [sys.executable, "-c", code, str(folder), repo_id]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_student_with_its_onnx_file_is_on_the_hub_as_it_is_here(parameters, server, tmp_path):
    teacher = experiment.ensure_teacher(parameters)
    student = experiment.ensure_student(parameters, teacher)
    compression.export_onnx(student.model, student.folder / "onnx" / "model.onnx")
    beside = {path.name for path in student.folder.iterdir()}
    assert {"logs", "training.json"} <= beside, "else it is not shown that these stay"
    assert [file.as_posix() for file in hub.files(student.folder)] == PUBLISHED
    done = push(server, student.folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == f"{server}/someone/student/commit/{'0' * 40}"
    pushed = sorted(file.relative_to(Hub.root).as_posix() for file in Hub.root.rglob("*") if file.is_file())
    assert pushed == PUBLISHED
    for name in set(PUBLISHED) - {"README.md"}:
        assert (Hub.root / name).read_bytes() == (student.folder / name).read_bytes()
    assert (Hub.visibility["name"], Hub.visibility["organization"]) == ("student", "someone")
    assert Hub.visibility["visibility"] == "private"
    assert len([path for path, _ in Hub.asked if "/commit/" in path]) == 1
    assert all(token == "Bearer hf_secret" for _, token in Hub.asked)
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(Hub.root), AutoTokenizer.from_pretrained(Hub.root)
    inputs = tokenizer("a [MASK]", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model.eval()(**inputs).logits, student.model(**inputs).logits)
    card = ModelCard.load(Hub.root / "README.md")
    assert 'pipeline("fill-mask", model="someone/student")' in card.text
    here = (student.folder / "README.md").read_text(encoding="utf-8")
    assert card.content == here.replace("this folder", "someone/student"), "and nothing else differs"
    for file in Hub.root.rglob("*.*"):
        assert str(tmp_path).encode() not in file.read_bytes(), f"{file.name} tells where it was made"


@pytest.mark.parametrize("missing", ["README.md", "config.json", "model.safetensors"])
def test_a_folder_without_a_model_is_refused_before_anything_is_sent(missing, server, tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    for name in {"README.md", "config.json", "model.safetensors"} - {missing}:
        (folder / name).write_text("")
    done = push(server, folder)
    assert f"FileNotFoundError: {folder}: {missing} is missing." in done.stderr
    (folder / missing).write_text("")
    without_token = push(server, folder, token=None)
    assert "PermissionError: the hub takes files from known users alone" in without_token.stderr
    assert not Hub.asked
