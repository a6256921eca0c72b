"""A study's sweep, or one training of it: what a command calls. Ray starts while what the driver needs is imported.

What can be refused of folder, store and study is refused first. Then Ray starts in the background, and meanwhile
`describe` prepares data and the driver's libraries are imported, which takes about as long.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mmsweep.errors import UserError
from mmsweep.readers.mlflow.address import check_store
from mmsweep.study import Study
from mmsweep.study.packs import count_trials
from mmsweep.study.space import check_search
from mmsweep.sweep.cluster import connecting, ray_lines_to
from mmsweep.sweep.folder import SweepFolder, check_lasting
from mmsweep.sweep.outcome import SweepOutcome

WARM = "mmsweep.assembly.host:Warm"


def run_sweep(
    study: Study,
    out: Path,
    *,
    resume: bool = False,
    extend: int = 0,
    retry_failed: bool = False,
    live: bool = True,
    warm: str = WARM,
    describe: Callable[[], Mapping[str, str]] = dict,
    overrides: Sequence[str] = (),
) -> SweepOutcome:
    """Run a study's sweep: search, then finals. Blocks until it is finished or interrupted.

    The first SIGINT (Ctrl-C), SIGTERM or SIGHUP ends it in good order once training has begun, and so does a Ray
    cluster that goes away: the outcome says so. Earlier, and the second time, a signal raises `ending.Interrupted`.

    Args:
        study: the study.
        out: the sweep's folder (`sweeps/<name>`).
        resume: go on with the sweep that lies in `out`.
        extend: so many trials more than it had.
        retry_failed: train its failed trials again.
        live: a live table where stdout is a terminal.
        warm: import path of what hosts keep warm (tests put a stand-in here).
        describe: called while Ray starts, before hosts do; more tags for the sweep's and the trials' MLflow runs.
        overrides: the command line's `key=value`, which `study` has already; they need not be repeated to resume.

    Raises:
        UserError: the folder, the study, the cluster or the tracking store forbids it; or the hosts cannot go on.
    """
    if not study.search:
        raise UserError(
            "nothing to search", key="search", found={}, expected="at least one key with a range or choices",
            hint="`mmsweep train` trains one configuration.",
        )  # fmt: skip
    check_search(study)
    return _run(
        study, out, trials=count_trials(study), resume=resume, extend=extend, retry_failed=retry_failed, live=live,
        warm=warm, describe=describe, overrides=overrides,
    )  # fmt: skip


def train_one(
    study: Study,
    out: Path,
    *,
    live: bool = True,
    warm: str = WARM,
    resume: bool = False,
    describe: Callable[[], Mapping[str, str]] = dict,
    overrides: Sequence[str] = (),
) -> SweepOutcome:
    """Train one configuration on one host and evaluate it on test; laid out and tracked like a sweep's final run.

    Raises:
        UserError: as `run_sweep`.
    """
    # It has one run, and who resumes it wants that run to end well.
    return _run(
        study,
        out,
        trials=0,
        resume=resume,
        extend=0,
        retry_failed=resume,
        live=live,
        warm=warm,
        describe=describe,
        overrides=overrides,
    )


def _run(
    study: Study,
    out: Path,
    *,
    trials: int,
    resume: bool,
    extend: int,
    retry_failed: bool,
    live: bool,
    warm: str,
    describe: Callable[[], Mapping[str, str]],
    overrides: Sequence[str],
) -> SweepOutcome:
    check_lasting(study, out)
    check_store(study.tracking.uri, Path.cwd())
    folder = SweepFolder.open(study, out.absolute(), trials=trials, resume=resume, extend=extend, overrides=overrides)
    done = folder.finished and not retry_failed
    try:
        with ray_lines_to(folder.logs / "driver.log"), contextlib.nullcontext() if done else connecting():
            tags = describe()
            folder.check_data(tags)
            from mmsweep.sweep.tuner import Sweep  # seconds

            return Sweep(study, folder, warm, tags).run(live=live, done=done, retry_failed=retry_failed)
    except BaseException:  # Ctrl-C while data is prepared, too
        folder.abandon()
        raise
    finally:
        folder.release()
