"""What a person sees while a sweep runs: one live table in a terminal, one line per event elsewhere. The only file
that prints."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mmsweep.record.objective import Objective

STYLES = {"finished": "green", "stopped": "yellow", "failed": "red", "training": "cyan", "waiting": "dim"}
ROWS = 18  # trials shown in the live table: those under way and the newest


@dataclass
class _Row:
    params: Mapping[str, Any]
    epochs: int
    state: str = "waiting"
    epoch: int = 0
    score: float | None = None
    note: str = ""
    quiet: bool = False
    since: float = field(default_factory=time.monotonic)


class Progress:
    """Shows trials and final runs.

    Args:
        title: the sweep's name.
        total: how many trials there will be.
        objective: what the scores are of.
        live: whether there may be a live table (there is one only in a terminal); if not, events go to stderr.
    """

    def __init__(self, title: str, total: int, objective: Objective, live: bool = True) -> None:
        # Taken before stdout goes to the log file; without a live table stdout belongs to the result (--json).
        self._console = Console(file=sys.stdout if live else sys.stderr, highlight=False, soft_wrap=True)
        self.title, self.total, self.objective = title, total, objective
        self._rows: dict[str, _Row] = {}
        self._phase, self._slots, self._reasons = "starting Ray", "", set[str]()
        self._started = time.monotonic()
        shown = live and self._console.is_terminal
        self._live = Live(get_renderable=self._table, console=self._console, refresh_per_second=2) if shown else None

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def phase(self, text: str) -> None:
        """What the sweep is about: starting Ray, hosts, trials, finals."""
        if text != self._phase:
            self._phase = text
            self._say(text)

    def slots(self, slots: Mapping[str, int]) -> None:
        """Hosts have found out how many trials they train in one pass."""
        if any(number > 1 for number in slots.values()):
            equal = len(set(slots.values())) == 1
            count = f"{len(slots)} host{'s' if len(slots) > 1 else ''}"
            text = (
                f"{count}, {next(iter(slots.values()))} slots each"
                if equal
                else ", ".join(f"{host}: {number} slots" for host, number in sorted(slots.items()))
            )
            if text != self._slots:
                self._slots = text
                self._say(text)

    def reasons(self, reasons: Sequence[str]) -> None:
        """Why hosts have a single slot; each is said once."""
        for reason in dict.fromkeys(reasons):
            if reason not in self._reasons:
                self._reasons.add(reason)
                self._say(f"one slot a host: {reason}")

    def line(self, text: str) -> None:
        """An event worth a line of its own, in a terminal too."""
        (self._live.console if self._live else self._console).print(Text(text))

    def trial(self, id: str, params: Mapping[str, Any], epochs: int, replayed: bool = False) -> None:
        """A trial or final run is there; one that is only replayed is shown without lines."""
        self._rows[id] = _Row(params, epochs, quiet=replayed)

    def epoch(self, id: str, epoch: int, score: float | None) -> None:
        """It reported an epoch."""
        row = self._rows[id]
        row.state, row.epoch, row.score = "training", epoch, score

    def ended(self, id: str, state: str, note: str | None) -> None:
        """It is finished, stopped or failed."""
        row = self._rows[id]
        row.state, row.note = state, note or ""
        if not row.quiet:
            score = "" if row.score is None else f"  {self._short()} {row.score:.4f}"
            note = f"  {row.note.splitlines()[0][:160]}" if row.note else ""
            self._say(f"{id:>6} {state:<8} epoch {row.epoch}/{row.epochs}{score}  {_params(row.params)}{note}")

    def _short(self) -> str:
        return self.objective.metric.removeprefix("val/")

    def _say(self, text: str) -> None:
        if not self._live:
            self._console.print(Text(f"[{time.monotonic() - self._started:6.1f} s] {text}"))

    def _table(self) -> Group:
        keys = list(dict.fromkeys(key for row in self._rows.values() for key in row.params))
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("trial", "state", "epoch", self._short(), *(_last_word(keys, key) for key in keys)):
            table.add_column(name, justify="right" if name in ("epoch", self._short()) else "left", no_wrap=True)
        shown = sorted(
            self._rows.items(), key=lambda item: item[1].state in ("finished", "stopped", "failed"), reverse=True
        )[-ROWS:]
        best = self._best()
        for id, row in shown:
            score = "" if row.score is None else f"{row.score:.4f}{' *' if id == best else ''}"
            values = [_value(row.params.get(key)) for key in keys]
            table.add_row(id, Text(row.state, STYLES.get(row.state, "")), f"{row.epoch}/{row.epochs}", score, *values)
        counts = {
            state: sum(r.state == state for r in self._rows.values()) for state in ("finished", "stopped", "failed")
        }
        done = sum(counts.values())
        head = Text(f"{self.title}: {self._phase}", "bold")
        head.append(f"   {done} of {max(self.total, len(self._rows))} ended", "")
        head.append("".join(f", {n} {state}" for state, n in counts.items() if n), "")
        head.append(f"   {self._slots}" if self._slots else "")
        head.append(f"   {time.monotonic() - self._started:.0f} s", "dim")
        return Group(head, table)

    def _best(self) -> str | None:
        scored = [
            (row.score, id)
            for id, row in self._rows.items()
            if row.state == "finished" and row.score is not None and not id.startswith("final")
        ]
        return min(scored, key=lambda pair: (self.objective.rank(pair[0]), pair[1]))[1] if scored else None


def _last_word(keys: Sequence[str], key: str) -> str:
    """`align_weight` for `method.align_weight`, unless another key ends likewise."""
    word = key.rsplit(".", 1)[-1]
    return word if sum(k.rsplit(".", 1)[-1] == word for k in keys) == 1 else key


def _value(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _params(params: Mapping[str, Any]) -> str:
    return " ".join(f"{_last_word(list(params), key)}={_value(value)}" for key, value in params.items())
