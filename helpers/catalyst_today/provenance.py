"""What a run's logdir keeps of where its results came from. Knows nothing of training."""

from __future__ import annotations

import platform
import subprocess
import zipfile
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from catalyst.core.callback import Callback, CallbackOrder
from IPython import get_ipython

from helpers.catalyst_today.saving import write_json

ROOT = Path(__file__).resolve().parents[2]


def packages() -> list[str]:
    """What is installed, as lines that pip reads."""
    return sorted({f"{found.metadata['Name']}=={found.version}" for found in distributions()}, key=str.casefold)


def git(*arguments: str) -> str:
    """What git answers about the repository, or a line that says why it answers nothing."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "git is not installed\n"
    return done.stdout if done.returncode == 0 else done.stderr


def executed_cells() -> str:
    """The cells that the notebook around us has run so far, as one text; empty outside of a notebook."""
    shell = get_ipython()
    cells = [] if shell is None else shell.user_ns.get("In", [])
    return "\n\n".join(f"# %%\n{cell}" for cell in cells if cell)


class ProvenanceCallback(Callback):
    """Write into the logdir, as a run starts, all that is needed to repeat it: ``run-1/``, and ``run-2/`` on resuming.

    ``config.json`` (the settings), ``packages.txt`` (Python and every installed package), ``revision.txt`` (the
    commit), ``uncommitted.diff`` (what differs from it) and ``code.zip`` (the helpers, the `sources`, and the cells of
    the notebook that runs).

    Args:
        logdir: the run's folder.
        config: the settings, as JSON has them.
        sources: further files to keep, such as the config files of the run.
    """

    def __init__(self, logdir: str | Path, config: dict[str, Any], sources: Sequence[str | Path] = ()):
        super().__init__(order=CallbackOrder.External + 11)  # after `ResumeCallback`, which may refuse the run
        self.logdir, self.config, self.sources = Path(logdir), config, [Path(source) for source in sources]

    def on_experiment_start(self, runner) -> None:
        if not runner.engine.is_main_process:
            return
        before = [int(number) for run in self.logdir.glob("run-*") if (number := run.name[4:]).isdigit()]
        folder = self.logdir / f"run-{1 + max(before, default=0)}"
        folder.mkdir(parents=True)
        write_json(folder / "config.json", self.config)
        lines = [f"# Python {platform.python_version()}", *packages()]
        (folder / "packages.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (folder / "revision.txt").write_text(git("rev-parse", "HEAD"), encoding="utf-8")
        (folder / "uncommitted.diff").write_text(git("diff", "--binary", "HEAD"), encoding="utf-8")
        with zipfile.ZipFile(folder / "code.zip", "w", zipfile.ZIP_DEFLATED) as code:
            for file in sorted((ROOT / "helpers").rglob("*.py")):
                code.write(file, file.relative_to(ROOT))
            for source in self.sources:
                code.write(source, source.name)
            if cells := executed_cells():
                code.writestr("cells.py", cells)
