"""What a benchmark ran on, and how its numbers are handed over: a table in Markdown and the same as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "transformers", "peft", "ray", "optuna")


class Machine:
    """Made before the measurement and asked after it, because the load counts at both ends."""

    def __init__(self) -> None:
        self.load, self.started, self.date = os.getloadavg()[0], time.monotonic(), time.strftime("%Y-%m-%d %H:%M")

    def facts(self, **more: Any) -> dict[str, Any]:
        """What the numbers depend on, JSON-able; `more` is the benchmark's own (threads, hosts)."""
        return {
            "date": self.date,
            "seconds": round(time.monotonic() - self.started),
            "machine": processor(),
            "cores": cores(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "cuda": torch.version.cuda if torch.cuda.is_available() else None,
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
            "commit": commit(),
            "load_before": round(self.load, 1),
            "load_after": round(os.getloadavg()[0], 1),
            **more,
        }


def in_words(facts: dict[str, Any]) -> str:
    """One sentence for a page of docs/results/."""
    places = [f"{facts['cores']} cores ({facts['machine']})"]
    if facts["gpu"]:
        places.insert(0, f"{facts['gpu']} (CUDA {facts['cuda']})")
    if "threads" in facts:
        places.append(f"{facts['threads']} thread(s)")
    versions = ", ".join(f"{name} {facts[name]}" for name in PACKAGES if facts[name])
    return (
        f"{facts['date']}, {', '.join(places)}, Python {facts['python']}, {versions}, commit {facts['commit']}, "
        f"load average {facts['load_before']:.1f} before and {facts['load_after']:.1f} after, {facts['seconds']} s."
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Lines of Markdown; None is an empty cell."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (list(columns), ["---"] * len(columns), *cells)]


def hand_over(title: str, lines: Sequence[str], facts: dict[str, Any], found: Any, out: Path | None) -> None:
    """Print the page; with `out` write it there as Markdown, and everything measured beside it as JSON."""
    page = [f"# {title}", "", f"`{command()}`, {in_words(facts)}", "", *lines]
    print("\n".join(page))
    if out is None:
        print(json.dumps({"ran_on": facts, "found": found}))
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text("\n".join(page) + "\n", encoding="utf-8")
    whole = {"command": command(), "ran_on": facts, "found": found}
    out.with_suffix(".json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def out_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write FILE.md and FILE.json instead of JSON to stdout"
    )


def device_of(name: str) -> torch.device:
    """Ends the program with a message where there is no such device."""
    if name.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(f"--device {name}: this needs a GPU, and torch {torch.__version__} sees none here; try --device cpu")
    return torch.device(name)


def command() -> str:
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {platform.machine()}"


def commit() -> str:
    """Short, with a + where files differ from it; "unknown" outside of a checkout."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "mmsweep") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
