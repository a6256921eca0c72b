"""The numbers of both papers by table, for comparison with a sweep's scores.

CMPT: "Robust Multimodal Learning via Cross-Modal Proxy Tokens", Reza, Patil, Solh, Asif. MMP: "MMP: Towards Robust
Multi-Modal Learning with Masked Modality Projection", Nezakati, Reza, Patil, Solh, Asif. Values are in percent, as
printed; mmsweep measured none of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from mmsweep.availability import Pattern, Scenario
from mmsweep.readers import wording
from mmsweep.readers.tables import Table
from mmsweep.record.sweep import SweepRecord

Shares = Mapping[str, float]


@dataclass(frozen=True)
class Published:
    """One printed value.

    Args:
        source: paper and table.
        dataset: the dataset's name in mmsweep.
        method: the paper's name of the method; the proposed method is "cmpt" or "mmp", as in mmsweep.
        metric: the metric's name in mmsweep.
        train: share of training rows that have each modality.
        test: share of test rows that have each modality.
        value: the score in percent.
        sd: SD over three seeds, if printed.
    """

    source: str
    dataset: str
    method: str
    metric: str
    train: Shares
    test: Shares
    value: float
    sd: float | None = None


def published(dataset: str) -> list[Published]:
    """All values for a dataset; spellings such as "mm-imdb" are understood."""
    return [row for row in ROWS if _plain(row.dataset) == _plain(dataset)]


def published_table(record: SweepRecord) -> Table | None:
    """The papers' scores beside this sweep's, for its dataset, training scenario and evaluated scenarios; None without
    a match."""
    group = record.best_group
    evaluation = group.first() if group else None
    if group is None or evaluation is None or "scenarios.train" in record.summary.search:
        return None  # the papers train under one scenario
    modalities, scenarios = evaluation.modalities, record.summary.scenarios
    ours = {s.shares: s.name for s in (Scenario.parse(spec, modalities) for spec in scenarios.evaluate)}
    trained = Scenario.parse(scenarios.train, modalities).shares
    matches: dict[tuple[str, str, str], list[Published]] = {}
    for row in published(record.summary.published or record.summary.dataset):
        if set(row.test) == set(modalities) and _shares(row.train, modalities) == trained:
            name = ours.get(_shares(row.test, modalities))
            if name is not None:
                matches.setdefault((row.source, name, row.metric), []).append(row)
    lines = []
    for (source, scenario, metric), rows in matches.items():
        proposed = [row for row in rows if row.method in ("cmpt", "mmp")]
        others = sorted((row for row in rows if row not in proposed), key=lambda row: -row.value)
        same = next((g for g in record.groups if g.evaluations and proposed and g.name == proposed[0].method), group)
        lines.append(
            (
                source,
                wording.scenario_label(scenario),
                wording.metric_name(metric),
                ", ".join(_printed(row) for row in proposed) or "–",
                f"{others[0].method} {_printed(others[0])}" if others else "–",
                wording.cell(metric, same.cell(scenario, metric), 2),
            )
        )
    columns = ("source", "scenario", "metric", "paper's method", "best other method", "this sweep")
    return Table("Published scores (%) beside this sweep's", columns, tuple(lines), 3) if lines else None


def _printed(row: Published) -> str:
    return f"{row.value:.2f}" + (f" ± {row.sd:.2f}" if row.sd is not None else "")


def _plain(name: str) -> str:
    short = re.sub(r"[^a-z0-9]", "", name.lower())
    aliases = {"upmcfood101": "food101", "cmumosi": "mosi", "kineticssound": "kineticssounds", "ks": "kineticssounds"}
    return aliases.get(short, short)


def _shares(available: Shares, modalities: Sequence[str]) -> tuple[tuple[Pattern, float], ...]:
    if all(share in (0.0, 1.0) for share in available.values()):
        missing = [m for m in modalities if not available[m]]
        return Scenario.parse({"missing": missing} if missing else "complete", modalities).shares
    return Scenario.parse({"available": dict(available)}, modalities).shares


def _grid(
    source: str, dataset: str, metric: str, methods: str, rows: Iterable[tuple[Shares, Shares, str]]
) -> list[Published]:
    """The values of a printed table with methods as columns ("a, b, cmpt"); "x" marks a cell without a value.

    Args:
        rows: (train, test, line of values).
    """
    values = []
    for train, test, line in rows:
        for name, text in zip(methods.split(", "), line.split(), strict=True):
            value, _, sd = text.partition("±")
            if value != "x":
                values.append(
                    Published(source, dataset, name, metric, train, test, float(value), float(sd) if sd else None)
                )
    return values


def _percent(**shares: float) -> Shares:
    return {modality: share / 100 for modality, share in shares.items()}


def _cmpt() -> list[Published]:
    few_images, halves, few_texts = (
        _percent(image=30, text=100),
        _percent(image=65, text=65),
        _percent(image=100, text=30),
    )
    both = _percent(image=100, text=100)
    sound = _percent(audio=100, video=100)
    rates = (few_images, halves, few_texts)
    table1 = "ViLT, MAP input, MAP attention, MSP, VisualBERT, Ma et al., Kim & Kim, MuAP head, MuAP cross, cmpt"
    values1 = {
        ("mmimdb", "f1_macro"): (
            "37.61 46.30 44.74 47.45 38.63 46.63 56.03 47.21 46.73 60.21±0.40",
            "36.30 42.66 41.56 42.03 37.23 41.28 49.24 42.57 43.92 54.04±0.23",
            "34.71 39.22 38.16 38.34 36.41 38.65 43.21 41.37 39.88 52.61±0.12",
        ),
        ("food101", "accuracy"): (
            "76.93 86.18 86.05 86.34 77.41 86.38 87.11 86.90 86.59 87.48±0.13",
            "69.03 79.08 78.09 78.89 71.06 78.58 82.67 77.87 78.95 82.83±0.25",
            "66.29 74.53 72.57 73.77 67.78 73.41 78.81 74.61 74.60 80.37±0.18",
        ),
    }
    table2 = "FiLM, BiGated, OGM-GE, QMF, MLA, cmpt"
    no_video, no_audio = _percent(audio=100, video=0), _percent(audio=0, video=100)
    no_text, no_image = _percent(image=100, text=0), _percent(image=0, text=100)
    values2 = {
        "crema_d": (
            sound,
            (no_video, "53.89 51.49 53.76 59.41 59.27 67.20"),
            (no_audio, "18.67 17.34 28.09 39.11 64.91 76.21"),
            (sound, "60.07 59.21 68.14 63.71 79.70 88.84"),
        ),
        "kinetics_sounds": (
            sound,
            (no_video, "48.67 49.96 48.87 51.57 54.67 68.27"),
            (no_audio, "23.15 23.77 29.73 32.19 51.03 85.77"),
            (sound, "63.33 63.72 65.74 65.78 71.35 91.21"),
        ),
        "food101": (
            both,
            (no_text, "4.68 14.20 22.35 45.74 69.60 75.66"),
            (no_image, "85.84 85.79 85.17 84.13 86.47 80.66"),
            (both, "87.21 88.87 87.54 92.87 93.33 94.47"),
        ),
    }
    # Table 6: rows are train x test in the order of `rates`; the diagonal repeats Table 1.
    table6 = "ViLT, MAP, MSP, Kim & Kim, cmpt"
    values6 = {
        ("mmimdb", "f1_macro"): (
            "37.63 47.18 47.45 56.03 60.21±0.40",
            "34.47 37.25 42.17 49.81 50.05±0.53",
            "30.00 24.31 34.32 43.07 36.10±0.19",
            "36.48 42.72 44.81 55.26 57.45±0.21",
            "36.54 40.84 42.03 49.24 54.04±0.23",
            "33.76 37.80 37.30 42.46 50.05±0.29",
            "27.25 20.17 34.11 54.67 44.72±0.46",
            "32.51 29.79 36.97 49.09 49.26±0.42",
            "34.26 36.89 38.34 43.21 52.61±0.12",
        ),
        ("food101", "accuracy"): (
            "76.40 86.34 86.34 87.11 87.48±0.13",
            "59.03 57.92 71.88 81.22 77.52±0.29",
            "41.94 29.71 56.87 75.41 67.60±0.26",
            "73.62 85.55 85.91 87.35 87.36±0.20",
            "68.60 78.49 78.89 82.67 82.83±0.25",
            "64.25 71.17 71.58 78.13 78.40±0.09",
            "43.67 27.46 57.22 86.90 85.34±0.15",
            "54.75 50.79 65.13 82.35 82.78±0.22",
            "66.01 73.71 73.77 78.81 80.37±0.18",
        ),
    }
    rows: list[Published] = []
    for (dataset, metric), lines in values1.items():
        rows += _grid(
            "CMPT, Table 1", dataset, metric, table1, ((r, r, line) for r, line in zip(rates, lines, strict=True))
        )
    for dataset, (train, *tests) in values2.items():
        rows += _grid("CMPT, Table 2", dataset, "accuracy", table2, ((train, test, line) for test, line in tests))
    table3 = "ViLT, MBT, MMBT, MMLoRA, PMF, PMF-L, MLA, cmpt"
    for dataset, metric, line in (
        ("food101", "accuracy", "92.00 93.56 94.10 93.70 91.51 91.68 93.33 94.47"),
        ("mmimdb", "f1_macro", "55.30 59.60 60.80 61.70 58.77 61.66 x 63.58"),
        ("mmimdb", "f1_micro", "64.70 64.81 66.10 67.20 64.51 66.72 x 69.23"),
    ):
        rows += _grid("CMPT, Table 3", dataset, metric, table3, [(both, both, line)])
    table4 = "G-Blend, FiLM, BiGated, OGM-GE, QMF, PMR, MLA, MBT, MMLoRA, cmpt"
    for dataset, line in (
        ("kinetics_sounds", "62.20 63.33 63.72 65.74 65.78 x 71.35 85.00 91.40 91.21"),
        ("ave", "65.50 x x 76.90 68.16 66.40 64.68 77.80 96.20 96.77"),
        ("crema_d", "58.70 60.07 59.21 68.14 63.71 61.80 79.70 x 88.60 88.84"),
    ):
        rows += _grid("CMPT, Table 4", dataset, "accuracy", table4, [(sound, sound, line)])
    for (dataset, metric), cells in values6.items():
        pairs = zip(product(rates, rates), cells, strict=True)
        rows += _grid("CMPT, Table 6", dataset, metric, table6, ((a, b, line) for (a, b), line in pairs))
    return rows


def _mmp() -> list[Published]:
    four = _percent(rgb=100, aolp=100, dolp=100, nir=100)
    depth, thermal = _percent(rgb=100, depth=100), _percent(rgb=100, thermal=100)
    no_depth, no_rgb_d = _percent(rgb=100, depth=0), _percent(rgb=0, depth=100)
    no_thermal, no_rgb_t = _percent(rgb=100, thermal=0), _percent(rgb=0, thermal=100)
    table1 = "pretrained, modality dropout, mmp"
    values1 = (
        ("mcubes", four, four, "51.54 48.56 48.95"),
        ("mcubes", four, {**four, "rgb": 0.0}, "1.45 33.88 38.57"),
        ("mcubes", four, {**four, "rgb": 0.0, "nir": 0.0}, "0.93 33.15 37.74"),
        ("mcubes", four, {**four, "rgb": 0.0, "nir": 0.0, "dolp": 0.0}, "1.13 26.30 31.31"),
        ("nyudv2", depth, depth, "56.30 51.12 53.81"),
        ("nyudv2", depth, no_depth, "51.05 48.80 52.04"),
        ("nyudv2", depth, no_rgb_d, "6.01 29.79 41.08"),
        ("fmb", thermal, thermal, "62.68 54.11 60.03"),
        ("fmb", thermal, no_thermal, "22.20 48.32 55.83"),
        ("fmb", thermal, no_rgb_t, "23.35 39.66 51.73"),
    )
    rows: list[Published] = []
    for dataset, train, test, line in values1:
        rows += _grid("MMP, Table 1", dataset, "miou", table1, [(train, test, line)])
    table2 = "AsymFusion, CEN, TokenFusion, Reza et al., MMANet, HeMIS, CMNeXt, RFNet, mmp"
    lines2 = [
        (depth, no_depth, "46.50 39.59 49.32 52.82 44.93 33.23 51.19 42.89 52.04"),
        (depth, no_rgb_d, "34.30 19.32 36.84 36.72 42.75 31.23 5.26 40.76 41.08"),
    ]
    rows += _grid("MMP, Table 2", "nyudv2", "miou", table2, lines2)
    both = _percent(image=100, text=100)
    # MMP trains one model on complete data; the paper does not say how the other columns were trained.
    lines3 = [
        (both, _percent(image=100, text=100), "x 92.71 92.71 92.87"),
        (both, _percent(image=100, text=30), "66.29 72.57 74.53 74.32"),
        (both, _percent(image=100, text=0), "x 67.70 68.10 66.06"),
        (both, _percent(image=65, text=65), "69.25 78.09 79.08 80.28"),
        (both, _percent(image=30, text=100), "76.66 86.05 86.18 87.71"),
        (both, _percent(image=0, text=100), "x 85.30 84.80 85.37"),
    ]
    rows += _grid("MMP, Table 3", "food101", "accuracy", "ViLT, MAP attention, MAP input, mmp", lines3)
    all3 = _percent(text=100, vision=100, audio=100)
    no_words, sound_only = {**all3, "text": 0.0}, {**all3, "text": 0.0, "vision": 0.0}
    table4 = "MulT, TFN, LMF, Reza et al., mmp"
    for metric, lines in (
        (
            "non0_accuracy",  # multiples of 1/656: the clips that are not neutral
            ("79.57 73.90 76.40 79.57 80.03", "48.93 42.23 43.29 55.49 54.73", "48.31 42.23 42.23 50.00 55.03"),
        ),
        (
            "non0_f1_weighted",
            ("79.67 73.40 75.70 79.67 80.04", "41.95 25.07 27.61 53.96 52.24", "40.98 25.07 25.07 46.71 53.98"),
        ),
    ):
        tests = zip((all3, no_words, sound_only), lines, strict=True)
        rows += _grid("MMP, Table 4", "mosi", metric, table4, ((all3, test, line) for test, line in tests))
    table5 = "modality dropout, linear projection, linear projection + align, mmp"
    lines5 = [
        (depth, depth, "51.12 51.31 52.84 53.81"),
        (depth, no_depth, "48.80 51.08 50.73 52.04"),
        (depth, no_rgb_d, "29.79 35.48 40.60 41.08"),
    ]
    return rows + _grid("MMP, Table 5", "nyudv2", "miou", table5, lines5)


ROWS: tuple[Published, ...] = (*_cmpt(), *_mmp())
