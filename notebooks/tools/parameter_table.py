"""Write notebooks/parameters/README.md: each parameter as cells and parameters.py have it.

`make notebooks` calls this; by itself: `python notebooks/tools/parameter_table.py`.
"""

from __future__ import annotations

from pathlib import Path
from helpers.runs.parameters import PARAMETERS, defaults
from results import rows

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "notebooks" / "parameters" / "README.md"
TEXT = """\
# Parameters

A file here is one experiment. It names what differs from the notebooks' defaults, and any \
notebook takes it:

```bash
papermill notebooks/03_runner.ipynb out.ipynb -f notebooks/parameters/rubert_lenta.yaml -p SEED 1
```

One file serves several notebooks: papermill warns of a name that this notebook does not have, \
which has no effect there. A name that no notebook has, or a value that is not right, stops the \
notebook before any work.

A value is given by `-p` (a number or a text), by `-y` (anything, as YAML), or in a file (`-f`). \
The last one counts, and it replaces the whole value: dicts are not merged. `catalyst-run` \
takes [a file as it is](../../docs/machines.md#on-many-gpus-from-a-file), by the same rules. Each \
of these is understood:

- `5e-4` is a number. YAML would read it as a text.
- `-p LAYERS '[0, 3]'` is a list. The same holds for a dict in quotes.
- `-p TEXT_FIELD 0` is the column named 0. `LABELLED_TEXT_FIELD` and `LABEL_FIELD` take a number \
for the place of a column; give them such a name by `-r LABEL_FIELD 0`, in a file in quotes.

`tiny.yaml` and `laptop.yaml` run anywhere. The files whose teacher is on the hub have been tried \
with a tiny teacher of as many layers, not at full size: their steps and learning rates are a start.

"""


def by_notebook() -> dict[str, dict[str, object]]:
    """For each notebook, by its number, its parameters and their defaults."""
    paths = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    return {path.name[:2]: defaults(path) for path in paths}


def default_cell(name: str, notebooks: dict[str, dict[str, object]]) -> str:
    """The default, and where a notebook has another; numbers are those of the notebooks."""
    values: dict[str, list[str]] = {}
    for number, parameters in notebooks.items():
        if name in parameters:
            values.setdefault(f"`{parameters[name]!r}`", []).append(number)
    if len(values) == 1:
        return next(iter(values))
    usual, *others = sorted(values, key=lambda value: -len(values[value]))
    return "; ".join([usual, *(f"{value} in {', '.join(values[value])}" for value in others)])


def table() -> str:
    notebooks = by_notebook()
    lines = [["parameter", "what it is", "right values", "default", "in notebooks"]]
    for name, (_, right, what) in PARAMETERS.items():
        having = [number for number, parameters in notebooks.items() if name in parameters]
        lines.append([f"`{name}`", what, right, default_cell(name, notebooks), ", ".join(having)])
    return rows(*lines) + "\n"


def write() -> None:
    TARGET.write_text(TEXT + table(), encoding="utf-8")


if __name__ == "__main__":
    write()
