"""Kill parts of a sweep at random, resume, and compare it with a sweep that nobody disturbed.

    python benchmarks/sweep_chaos.py --kills 20 --seed 0

The trials sleep instead of training (`tests/end_to_end/sleeping.py`) but keep the real contract: two ranks that
exchange gradients by gloo, checkpoints, durable reports, exact resume. Killed (SIGKILL) is at random: one rank, all
ranks, the hosts' supervisor (Ray Train's controllers run in it), the light Tune trial's process, or the driver; after a
driver's death the sweep is resumed. At the end:

- every trial and final run is in a terminal state, with the parameters and the metrics of the undisturbed sweep, to
  the last bit;
- no epoch that was reported was trained a second time, and nothing was trained after a trial's end;
- Optuna agrees with the folders; MLflow has one run for each trial and final, in a terminal state.

Writes what it found to docs/results/chaos.md with `--write`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
STAND_IN = ROOT / "tests" / "end_to_end"
sys.path[:0] = [str(ROOT), str(STAND_IN)]

TARGETS = {  # what -> how Ray titles its process
    "one rank": "RayTrainWorker",
    "all ranks": "RayTrainWorker",
    "supervisor": "Supervisor",
    "light trial": "ImplicitFunc",
    "driver": "",
}


def drive(out: Path, resume: bool) -> int:
    """The driver that is killed: one sweep, in this process."""
    import sleeping

    from mmsweep.sweep.start import run_sweep

    study = sleeping.study(
        "chaos",
        train__epochs=6,
        sweep__trials=12,
        sweep__sampler__name="tpe",
        sweep__scheduler__reduction_factor=2,
        resources__workers=2,
        resources__slots=1,  # ASHA and TPE hear of trials that train side by side in no fixed order
    )
    return (
        0 if run_sweep(study, out, resume=resume, live=False, warm="sleeping:SleepingWarm").state == "finished" else 1
    )


def start(out: Path) -> subprocess.Popen[bytes]:
    resume = (out / "study.yaml").exists()
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{STAND_IN}", "SLEEPING_EPOCH": "0.4"}
    command = [sys.executable, __file__, "--drive", str(out), *(["--resume"] if resume else [])]
    log = open(out.parent / f"{out.name}.log", "ab")  # noqa: SIM115 - the child's
    return subprocess.Popen(command, cwd=out.parent, env=environment, stdout=log, stderr=log, start_new_session=True)


def reports(out: Path) -> int:
    return sum(len(p.read_text().splitlines()) for p in out.glob("**/reports.jsonl"))


def kill(what: str, driver: subprocess.Popen[bytes], rng: random.Random) -> bool:
    """Whether there was such a process to kill."""
    family = [*psutil.Process(driver.pid).children(recursive=True)]
    if what == "driver":
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        # Ray's daemons and workers die with the driver; its two agents, which do nothing, take a minute.
        family = [p for p in family if not _is_agent(p)]
        began = time.monotonic()
        while any(_lives(p) for p in family):
            if time.monotonic() - began > 60:
                raise SystemExit(f"left behind: {[p for p in family if _lives(p)]}")
            time.sleep(0.1)
        print(f"           Ray outlived the driver by {time.monotonic() - began:.1f} s", flush=True)
        return True
    found = []
    for process in family:
        try:
            if TARGETS[what] in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    if not found:
        return False
    for process in found if what == "all ranks" else [rng.choice(found)]:
        process.send_signal(signal.SIGKILL)
    return True


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _is_agent(process: psutil.Process) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    scripts = ("dashboard/agent.py", "agent/main.py")  # until Ray has given the process its title
    return "Agent" in " ".join(command) or any(part.endswith(scripts) for part in command)


def disturb(out: Path, kills: int, rng: random.Random, targets: list[str]) -> list[tuple[float, str, int]]:
    """Run the sweep to its end, with so many kills on its way: (seconds, what, reports there were)."""
    began, log = time.monotonic(), []
    while True:
        driver, seen = start(out), reports(out)
        patience = rng.uniform(3, 40) if len(log) < kills and rng.random() < 0.3 else None  # a driver that dies early
        started = time.monotonic()
        while driver.poll() is None:
            time.sleep(0.05)
            early = patience is not None and time.monotonic() - started > patience
            if len(log) >= kills or not (early or reports(out) > seen):
                continue
            what = "driver" if early else rng.choice(targets)
            time.sleep(rng.uniform(0, 1.5))
            if driver.poll() is None and kill(what, driver, rng):
                log.append((time.monotonic() - began, what, reports(out)))
                print(f"{log[-1][0]:7.1f} s  killed {what}, {log[-1][2]} reports", flush=True)
                seen, patience = reports(out), None
        if driver.returncode == 0:
            return log
        if driver.returncode != -signal.SIGKILL:
            raise SystemExit(
                f"the driver ended with {driver.returncode}: {(out.parent / (out.name + '.log')).read_text()[-3000:]}"
            )


def facts(out: Path) -> dict[str, Any]:
    """What a sweep's folder says, as far as it must not depend on kills."""
    found = {}
    for path in sorted(out.glob("trials/*/trial.json")) + sorted(out.glob("final/*/*/trial.json")):
        folder = path.parent
        lines = [json.loads(line) for line in (folder / "reports.jsonl").read_text().splitlines()]
        found[str(folder.relative_to(out))] = {
            "params": json.loads(path.read_text())["params"],
            "state": json.loads((folder / "done.json").read_text())["state"]
            if (folder / "done.json").exists()
            else None,
            "epochs": [(line["epoch"], line["metrics"]) for line in lines],
        }
    return found


def problems(out: Path, quiet: Path) -> list[str]:
    """Where the disturbed sweep `out` is not what it must be."""
    import optuna
    from mlflow import MlflowClient

    wrong, disturbed, undisturbed = [], facts(out), facts(quiet)
    if disturbed.keys() != undisturbed.keys():
        wrong.append(f"trials differ: {sorted(disturbed.keys() ^ undisturbed.keys())}")
    for name in disturbed.keys() & undisturbed.keys():
        for what in ("params", "state", "epochs"):
            if disturbed[name][what] != undisturbed[name][what]:
                wrong.append(f"{name}: {what} {disturbed[name][what]} instead of {undisturbed[name][what]}")
    for name, trial in disturbed.items():
        # An epoch may be trained twice only if it was killed before its report: the line in trained.log follows the
        # report.
        trained = [int(line.split()[0]) for line in (out / name / "trained.log").read_text().splitlines()]
        if any(count > 1 for count in Counter(trained).values()) or len(trained) > len(trial["epochs"]):
            wrong.append(f"{name}: trained again: {trained}")
    states = {"finished": "COMPLETE", "stopped": "PRUNED", "failed": "FAIL"}
    study = optuna.load_study(study_name="chaos", storage=f"sqlite:///{out / 'optuna.db'}")
    told = {t.user_attrs.get("mmsweep_trial"): t.state.name for t in study.get_trials()}
    for name, trial in disturbed.items():
        if name.startswith("trials/") and told.get(int(name[-4:])) != states.get(trial["state"]):
            wrong.append(f"{name}: {trial['state']}, but Optuna has {told.get(int(name[-4:]))}")
    client = MlflowClient(f"sqlite:///{out.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("chaos")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    own = [
        r
        for r in runs
        if r.data.tags.get("mlflow.parentRunId") == json.loads((out / "sweep.json").read_text())["mlflow"]["run_id"]
    ]
    counts = Counter(r.data.tags["mmsweep.trial_id"] for r in own)
    if len(counts) != len(disturbed) or any(n > 1 for n in counts.values()):
        wrong.append(f"MLflow's runs: {dict(counts)}")
    wrong += [f"MLflow: {r.info.run_name} is {r.info.status}" for r in own if r.info.status == "RUNNING"]
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=list(TARGETS), help="kill only these")
    parser.add_argument("--write", action="store_true", help="write docs/results/chaos.md")
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        return drive(options.drive, options.resume)
    with tempfile.TemporaryDirectory(prefix="chaos-") as place:
        quiet, out = Path(place) / "quiet", Path(place) / "disturbed"
        began = time.monotonic()
        disturb(quiet, 0, random.Random(0), [])
        undisturbed = time.monotonic() - began
        print(f"undisturbed: {undisturbed:.0f} s, {reports(quiet)} reports", flush=True)
        log = disturb(out, options.kills, random.Random(options.seed), options.only or list(TARGETS))
        whole = time.monotonic() - began - undisturbed
        wrong = problems(out, quiet)
        states = Counter(str(trial["state"]) for trial in facts(out).values())
        counts = Counter(what for _, what, _ in log)
        machine = f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}"
        command = f"python benchmarks/sweep_chaos.py --kills {options.kills} --seed {options.seed}"
        against = (
            "no difference in parameters, states and metrics (compared exactly); no reported epoch trained twice; "
        )
        against += "Optuna and MLflow agree with the folders."
        said = [
            "# A sweep under random kills",
            "",
            f"`{command}` on {time.strftime('%Y-%m-%d')}, {machine}. 12 trials and 3 final runs of up to 6 sleeping",
            "epochs, ASHA, TPE, one host of two gloo ranks. What is compared stands at the top of the script.",
            "",
            f"- Kills: {len(log)} ({', '.join(f'{n} × {what}' for what, n in sorted(counts.items()))}).",
            f"- Undisturbed {undisturbed:.0f} s; with the kills {whole:.0f} s, restarts included.",
            f"- At the end: {dict(sorted(states.items()))}; {reports(out)} reports.",
            f"- Against the undisturbed sweep: {'WRONG: ' + '; '.join(wrong) if wrong else against}",
            "",
            "| second | killed | epochs reported by then |",
            "|---|---|---|",
            *(f"| {second:.0f} | {what} | {n} |" for second, what, n in log),
        ]
        print("\n".join(said))
        if options.write:
            (ROOT / "docs" / "results" / "chaos.md").write_text("\n".join(said) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
