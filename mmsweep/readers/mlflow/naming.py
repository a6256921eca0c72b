"""Names and descriptions of a sweep's runs, metrics and tags in MLflow."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence

from mlflow.entities import Run

from mmsweep.readers.markdown import markdown_text
from mmsweep.record.objective import Objective

_NOTE_LIMIT = 7500  # MLflow keeps 8,000 characters of a tag


def metric_name(name: str) -> str:
    """A name that MLflow accepts (letters, digits and `_ - . space : /`).

    Valid names are unchanged. In others, forbidden characters become `_`, and a digest of the original keeps different
    names different.
    """
    clean = re.sub(r"[^/\w.\- :]", "_", name)
    clean = "/".join(part for part in clean.split("/") if part not in ("", ".", ".."))[:230]
    return clean if clean == name else f"{clean}-{uuid.uuid5(uuid.NAMESPACE_OID, name).hex[:6]}"


def prefixed(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags with mmsweep's prefix: "split_digest" becomes `mmsweep.split_digest`."""
    ours = ("mmsweep.", "mlflow.")
    return {name if name.startswith(ours) else f"mmsweep.{name}": str(value) for name, value in tags.items()}


def param_text(value: object) -> str:
    """A searched value as an MLflow parameter."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def children_table(children: Sequence[Run], objectives: Sequence[Objective], experiment_id: str) -> str:
    """Markdown for the parent's description, since MLflow does not link a parent to its children: finals by their test
    metric, then trials by objective."""
    scores = {"objective" if len(objectives) == 1 else f"objective/{o.metric}": o for o in objectives}
    tests = {"test/" + o.metric.removeprefix("val/"): o for o in objectives}
    finals = _table("final", children, tests, {name: name for name in tests}, experiment_id, 1500)
    titles = {name: o.metric for name, o in scores.items()}
    trials = _table("trial", children, scores, titles, experiment_id, _NOTE_LIMIT - 1600)
    return "\n\n".join(part for part in (finals, trials) if part)


def _table(
    kind: str,
    children: Sequence[Run],
    metrics: dict[str, Objective],
    titles: dict[str, str],
    experiment_id: str,
    limit: int,
) -> str:
    runs = [run for run in children if run.data.tags.get("mmsweep.kind") == kind]
    if not runs:
        return ""
    params = sorted({key for run in runs for key in run.data.params})[:8]
    shown = [name for name in metrics if any(name in run.data.metrics for run in runs)]
    if shown:
        first, objective = shown[0], metrics[shown[0]]
        runs.sort(key=lambda run: (first not in run.data.metrics, objective.rank(run.data.metrics.get(first, 0.0))))
    header = [kind, "state", *(markdown_text(text) for text in [*(titles[name] for name in shown), *params])]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for position, run in enumerate(runs):
        name = f"[{markdown_text(run.info.run_name)}](#/experiments/{experiment_id}/runs/{run.info.run_id})"
        values = [f"{run.data.metrics[m]:.4f}" if m in run.data.metrics else "" for m in shown]
        state = run.data.tags.get("mmsweep.state", run.info.status.lower())
        varied = [markdown_text(_short(run.data.params.get(key, ""))) for key in params]
        line = f"| {' | '.join([name, state, *values, *varied])} |"
        if sum(map(len, lines)) + len(line) > limit:
            return "\n".join(lines) + f"\n\n… and {len(runs) - position} more."
        lines.append(line)
    return "\n".join(lines)


def _short(text: str) -> str:
    """A number with four digits, or the first forty characters."""
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text[:40]
