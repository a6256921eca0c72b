"""MLflow tags of the code version, packages and machine, on which a result depends beside its study."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "ray", "optuna", "mlflow", "transformers", "timm", "peft", "numpy")


def environment_tags() -> dict[str, str]:
    """Tags for `Tracker.start`.

    `mmsweep.version`, `mmsweep.git_commit` (of mmsweep's checkout, if any), `mlflow.source.git.commit` (of the working
    directory), `mmsweep.python`, `mmsweep.<package>`, `mmsweep.device` (of the driver), `mmsweep.platform`.
    """
    tags = {
        "mmsweep.version": metadata.version("mmsweep") if _installed("mmsweep") else "0",
        "mmsweep.python": platform.python_version(),
        "mmsweep.platform": platform.platform(),
        "mmsweep.device": _device(),
    }
    tags |= {f"mmsweep.{name}": metadata.version(name) for name in PACKAGES if _installed(name)}
    package = Path(__file__).resolve().parents[2]
    # mmsweep may be installed in an environment inside another repository, which does not track its files.
    if _git(package, "ls-files", "--error-unmatch", str(package / "__init__.py")):
        tags["mmsweep.git_commit"] = _commit(package)
    if commit := _commit(Path.cwd()):
        tags["mlflow.source.git.commit"] = commit
    return {name: value for name, value in tags.items() if value}


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _device() -> str:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"cpu ({os.cpu_count()} cores)"


def _commit(folder: Path) -> str:
    commit = _git(folder, "rev-parse", "HEAD")
    return commit + "-dirty" if commit and _git(folder, "status", "--porcelain", "--untracked-files=no") else commit


def _git(folder: Path, *arguments: str) -> str:
    """The output of git; "" if it fails."""
    try:
        result = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
