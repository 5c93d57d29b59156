"""Run by the set-up cell, in the kernel's own process, where a notebook is all that a machine has.

Installs what the notebooks need and lacks here, and makes the helpers importable.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from packaging.requirements import Requirement  # ipykernel requires it, so every kernel has it

ROOT = Path(__file__).resolve().parents[2]
NOT_NEEDED = {"jupyterlab"}
"""The notebook is open already, in whatever the machine has."""
LEFT_ALONE = {"torch", "ipywidgets", "setuptools", "six"}
"""Any version of them stays: torch is built for the machine's GPU, ipywidgets for its front end,
and of setuptools and six Catalyst uses next to nothing. Everything else gets the version that
pyproject pins: that set alone is known to work together."""


def installed(name: str) -> str | None:
    """The version of an installed distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def plan(
    dependencies: list[str], installed: Callable[[str], str | None]
) -> tuple[list[str], list[str]]:
    """What to install, and the versions that have to stay, both as pip reads them."""
    wanted, kept = [], []
    for requirement in map(Requirement, dependencies):
        name, found = requirement.name, installed(requirement.name)
        if name in NOT_NEEDED or (requirement.marker and not requirement.marker.evaluate()):
            continue
        if name in LEFT_ALONE and found:
            kept.append(f"{name}=={found}")
        elif not found or not requirement.specifier.contains(found, prereleases=True):
            wanted.append(f"{name}{requirement.specifier}")
    return wanted, kept


def pip_install(wanted: list[str], kept: list[str]) -> None:
    """Install by pip 24.0, the last that takes the metadata of Catalyst's last release.

    It runs from its wheel: the machine's own pip stays as it is.

    Raises:
        RuntimeError: pip failed, with what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder, "constraints.txt")
        constraints.write_text("\n".join(kept), encoding="utf-8")
        pip_24 = Path(folder, "pip-24.0-py3-none-any.whl", "pip")
        for arguments in (
            ["-m", "pip", "download", "--no-deps", f"--dest={folder}", "pip==24.0"],
            [str(pip_24), "install", f"--constraint={constraints}", *wanted],
        ):
            command = [sys.executable, *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"pip failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    importlib.invalidate_caches()


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = [*project["dependencies"], *project["optional-dependencies"]["compress"]]
    wanted, kept = plan(own, installed)
    if wanted:
        modules = packages_distributions().items()
        loaded = {name for module, names in modules if module in sys.modules for name in names}
        before = {name: installed(name) for name in loaded}
        print(f"Set-up: installing {', '.join(wanted)} (some minutes, once).", flush=True)
        pip_install(wanted, kept)
        if changed := sorted(name for name in loaded if installed(name) != before[name]):
            # Two versions of a compiled package in one process end in a crash, or worse.
            sys.exit(
                f"Set-up: installed. This kernel still holds the old {', '.join(changed)}: restart "
                "it (on Colab: Runtime, Restart session), then run the notebook from the top."
            )
    if sys.version_info >= (3, 12):
        importlib.import_module("setuptools")  # brings distutils at once, not from the next start
    # Both this process and those that it starts, such as torchrun's.
    sys.path.insert(0, str(ROOT))
    paths = [str(ROOT), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    os.chdir(ROOT)
    print("Set-up: the helpers are here.")


if __name__ == "__main__":
    main()
