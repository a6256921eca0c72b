"""The search space as Optuna samples it, what Optuna is told, and how it finds its sweep's folder again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from mmsweep.errors import UserError
from mmsweep.record.trial import Report, TrialFolder
from mmsweep.study import Study
from mmsweep.study.packs import count_trials
from mmsweep.study.space import SearchSpace, check_search, identity, starting_points
from mmsweep.sweep.search import MAX_LOSSES, TrialSearch, open_optuna, tell
from mmsweep.sweep.tuner import judged_epochs, make_scheduler
from tests.unit.search_helpers import SEARCH, searched

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from sleeping import METRIC, study

pytestmark = pytest.mark.long


def post(folder: TrialFolder, own: Study | None) -> None:
    pass


def ended(folder: TrialFolder) -> None:
    if folder.done() is None:
        folder.mark_done("stopped")


def searcher(s: Study, path: Path) -> tuple[TrialSearch, optuna.Study]:
    told = open_optuna(path / "optuna.db", "s", s.sweep.objectives)
    for point in starting_points(s):
        told.enqueue_trial(point, skip_if_exists=True)
    numbers = sorted(int(p.parent.name) for p in path.glob("trials/*/trial.json"))
    return TrialSearch(s, told, path / "trials", numbers, post, ended, total=99), told


def train(path: Path, number: int, values: list[float], state: str | None = "finished") -> TrialFolder:
    folder = TrialFolder(path / "trials" / f"{number:04d}")
    for epoch, value in enumerate(values, 1):
        folder.append(Report(epoch, {METRIC: value}))
    if state:
        folder.mark_done(state)  # type: ignore[arg-type]
    return folder


def test_a_condition_decides_whether_a_dimension_is_suggested() -> None:
    space, told = SearchSpace(searched()), optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for _ in range(20):
        values = space(told.ask())
        assert ("method.aggregated_tokens" in values) == (values["method.name"] == "mmp")
        assert values["train.optimizer.betas"] in ([0.9, 0.99], [0.9, 0.999])  # a list, though Optuna keeps its JSON
        assert "method.align_weight" in values  # the study's own batch size is 8
        assert 1 <= values["model.lora.rank"] <= 8
    with pytest.raises(UserError, match="depend on each other"):
        SearchSpace(
            searched(
                {
                    a: {"choice": [1], "when": {b: 1}}
                    for a, b in [("train.seed", "train.epochs"), ("train.epochs", "train.seed")]
                }
            )
        )


def test_the_study_as_it_stands_is_the_first_point_and_must_lie_inside() -> None:
    s = searched(method__align_weight=0.3)
    assert starting_points(s) == [
        {
            "method.name": "cmpt",
            "model.lora.rank": 1,
            "train.optimizer.betas": "[0.9, 0.999]",
            "method.align_weight": 0.3,
        }
    ]
    with pytest.raises(UserError, match=r"outside of the search space.*found 3"):
        starting_points(searched({"method.align_weight": {"uniform": [0, 1]}}, method__align_weight=3))


def test_a_searched_alpha_starts_from_the_number_that_rank_stands_for() -> None:
    def first(alpha: dict[str, Any]) -> Any:
        search = {"model.lora.alpha": alpha}
        return starting_points(searched(search, model__lora__rank=4))[0]["model.lora.alpha"]

    assert first({"uniform": [1, 8]}) == first({"choice": [1.0, 4.0]}) == 4.0
    assert first({"choice": [1.0, "rank"]}) == "rank"


def test_a_grid_is_every_combination_under_its_conditions_once() -> None:
    grid = {"method.name": {"choice": ["cmpt", "mmp"]}, "method.aggregated_tokens": SEARCH["method.aggregated_tokens"]}
    s = searched({**grid, "train.seed": {"choice": [0, 1]}}, sweep__sampler__name="grid")
    points = starting_points(s)
    assert len(points) == count_trials(s) == 2 * (1 + 2)
    assert {"method.name": "cmpt", "train.seed": 1} in points


def test_scores_follow_metric_and_scope() -> None:
    epochs = [{METRIC: v} for v in (0.1, 0.5, 0.3)]
    mae = "val/mean_missing/mae"
    for metric, scope, expected in [(METRIC, "best", 0.5), (METRIC, "last", 0.3), (mae, "best", 0.1)]:
        s = study(sweep__objective={"metric": metric, "scope": scope})
        assert s.sweep.objectives[0].score([{metric: e[METRIC]} for e in epochs]) == expected


def test_optuna_learns_from_the_folder_how_a_trial_ended(tmp_path: Path) -> None:
    search, told = searcher(study(), tmp_path)
    configs = [search.suggest(f"t{n}") for n in range(4)]
    assert [c["number"] for c in configs if c] == [0, 1, 2, 3]
    train(tmp_path, 0, [0.1, 0.6, 0.5, 0.4])
    train(tmp_path, 1, [0.2], state=None)  # Tune stops it
    train(tmp_path, 2, [float("nan")], state="failed")
    train(tmp_path, 3, [0.1, 0.2, 0.3, 0.4], state=None)  # Tune is faster than the host's mark
    for n in range(4):
        search.on_trial_complete(f"t{n}", {"epoch": (4, 1, 1, 4)[n]})
    trials = told.get_trials()
    assert [t.state for t in trials] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.COMPLETE]
    assert trials[0].value == 0.6 and trials[0].intermediate_values == {1: 0.1, 2: 0.6, 3: 0.6, 4: 0.6}
    assert trials[1].value == 0.2 and trials[1].intermediate_values == {1: 0.2}


def test_a_trial_that_tune_lost_is_not_told_and_served_again(tmp_path: Path) -> None:
    search, told = searcher(study(), tmp_path)
    first = search.suggest("t0")
    train(tmp_path, 0, [0.1], state=None)
    search.on_trial_complete("t0", None, error=True)
    assert search.suggest("t1") == first  # at once, and again after a restart
    search.on_trial_complete("t1", None, error=True)
    assert told.get_trials()[0].state == TrialState.RUNNING
    again, _ = searcher(study(), tmp_path)
    assert again.suggest("u0") == first


def test_a_killed_search_suggests_what_an_undisturbed_one_would_have(tmp_path: Path) -> None:
    def until(path: Path, n: int, kill_at: frozenset[int] = frozenset()) -> list[Any]:
        path.mkdir()
        configs: list[Any] = []
        search, told = searcher(study(sweep__sampler={"name": "tpe"}), path)
        for k in range(n):
            if k in kill_at:
                told.sampler = optuna.samplers.RandomSampler(seed=99)
                told.ask()  # a driver asks, and is killed before it has made the folder
                search, told = searcher(study(sweep__sampler={"name": "tpe"}), path)
                for served in range(k):
                    assert search.suggest(f"again{served}") == configs[served]
            configs.append(search.suggest(f"t{k}"))
            train(path, k, [0.1 * k, 0.3, 0.2, 0.1])
            search.on_trial_complete(f"t{k}", {"epoch": 4})
        return configs

    assert until(tmp_path / "a", 14) == until(tmp_path / "b", 14, frozenset({0, 5, 12}))


def test_the_search_ends_when_all_are_served_and_none_can_be_lost_any_more(tmp_path: Path) -> None:
    search, _ = searcher(study(), tmp_path)
    search._total = 2
    search.set_max_concurrency(1)
    assert search.suggest("t0") and search.suggest("t1") is None  # one at a time
    search.on_trial_complete("t0")
    assert search.suggest("t1") and search.suggest("t2") is None
    for _ in range(MAX_LOSSES + 1):
        search.on_trial_complete("t1", error=True)
        search.suggest("t1")
    assert search.suggest("t2") == Searcher.FINISHED
    assert "lost it" in str(TrialFolder(tmp_path / "trials" / "0001").done())


def test_a_combination_that_makes_no_study_is_a_failed_trial(tmp_path: Path) -> None:
    s = searched({"train.epochs": {"choice": [2, 9]}, "train.schedule.warmup_epochs": {"choice": [0, 5]}},
                 sweep__sampler__name="grid", sweep__start_from=[])  # fmt: skip
    search, told = searcher(s, tmp_path)
    for n in range(4):
        search.suggest(f"t{n}")
        search.on_trial_complete(f"t{n}")
    done = [TrialFolder(tmp_path / "trials" / f"{n:04d}").done() or {} for n in range(4)]
    assert [d["state"] for d in done].count("failed") == 1
    assert any("warm" in (d["error"] or "") for d in done)
    assert [t.state for t in told.get_trials()].count(TrialState.FAIL) >= 1


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsgaii", "gp"])
def test_every_sampler_serves_one_and_several_objectives(sampler: str, tmp_path: Path) -> None:
    several = [{"metric": METRIC}, {"metric": "val/complete/loss", "mode": "min"}]
    for place, objective in (("one", several[0]), ("two", several)):
        (tmp_path / place).mkdir()
        s = study(sweep__sampler__name=sampler, sweep__objective=objective)
        search, told = searcher(s, tmp_path / place)
        for n in range(13):
            assert 0 <= search.suggest(f"t{n}")["params"]["method.align_weight"] <= 1
            folder = TrialFolder(tmp_path / place / "trials" / f"{n:04d}")
            for epoch in range(1, 5):
                folder.append(Report(epoch, {METRIC: n / 10, "val/complete/loss": epoch}))
            folder.mark_done("stopped" if n % 5 == 4 else "finished")
            search.on_trial_complete(f"t{n}", {"epoch": 4})
        states = [t.state.name for t in told.get_trials()]
        assert states.count("COMPLETE") == 11 and states.count("PRUNED") == 2


def test_telling_twice_changes_nothing(tmp_path: Path) -> None:
    search, told = searcher(study(), tmp_path)
    search.suggest("t0")
    folder = train(tmp_path, 0, [0.1, 0.2, 0.3, 0.4])
    for _ in range(2):
        tell(told, folder, study().sweep.objectives)
    assert [t.value for t in told.get_trials()] == [0.4]


def test_no_more_trials_are_open_than_the_hosts_have_slots_for(tmp_path: Path) -> None:
    """Also where that becomes known only later; the last one is known as such at once."""
    room = [1]
    _, told = searcher(searched(), tmp_path)
    search = TrialSearch(searched(), told, tmp_path / "trials", [], post, ended, total=4, room=lambda: room[0])
    search.set_max_concurrency(64)
    assert search.suggest("a") and search.suggest("b") is None
    room[0] = 3
    assert search.suggest("b") and search.suggest("c") and search.suggest("d") is None and not search.exhausted
    train(tmp_path, 0, [0.5])
    search.on_trial_complete("a")
    assert search.suggest("d") and search.exhausted
    search.on_trial_complete("b", error=True)  # lost: served again
    assert not search.exhausted


@pytest.mark.parametrize(("grace", "factor", "epochs"), [(1, 3, 30), (2, 2, 16), (4, 4, 10), (5, 3, 4), (1, 2, 1)])
def test_the_epochs_that_are_waited_for_are_those_at_which_asha_stops(grace: int, factor: int, epochs: int) -> None:
    asked = study(sweep__scheduler={"name": "asha", "grace_epochs": grace, "reduction_factor": factor},
                  train__epochs=epochs)  # fmt: skip
    rungs = [milestone for milestone, _ in make_scheduler(asked)._brackets[0]._rungs]  # type: ignore[attr-defined]
    assert judged_epochs(asked) == sorted(rungs)
    assert judged_epochs(asked.with_values({"sweep.scheduler.name": "none"})) == []
    assert judged_epochs(asked.with_values({"sweep.scheduler.name": "median"})) == list(range(1, epochs + 1))


# ---- suggestions that repeat

SMALL = {"model.lora.rank": {"choice": [1, 2, 4]}, "train.seed": {"int": [0, 2]}}


def small(path: Path, total: int = 99, said: list[str] | None = None, **values: Any) -> tuple[TrialSearch, Any]:
    s = searched({"model.lora.rank": SMALL["model.lora.rank"]}, **values)
    told = open_optuna(path / "optuna.db", "s", s.sweep.objectives)
    for point in starting_points(s):
        told.enqueue_trial(point, skip_if_exists=True)
    numbers = sorted(int(p.parent.name) for p in path.glob("trials/*/trial.json"))
    say = (said if said is not None else []).append
    return TrialSearch(s, told, path / "trials", numbers, post, ended, total=total, say=say), told


def run_all(search: TrialSearch, path: Path) -> list[dict[str, Any]]:
    """Train every suggestion in turn, to a score that depends on its rank and seed."""
    found = []
    while (config := search.suggest(f"t{len(found)}")) not in (None, Searcher.FINISHED):
        assert isinstance(config, dict)
        params = config["params"]
        train(path, config["number"], [params.get("model.lora.rank", 0) / 10 + params.get("train.seed", 0) / 100] * 4)
        search.on_trial_complete(f"t{len(found)}", {"epoch": 4})
        found.append(params)
    assert config == Searcher.FINISHED
    return found


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "nsgaii"])
def test_no_configuration_is_trained_twice_and_an_exhausted_space_ends_the_search(sampler: str, tmp_path: Path) -> None:
    said: list[str] = []
    search, told = small(tmp_path, 9, said, sweep__sampler__name=sampler)
    found = run_all(search, tmp_path)
    assert sorted(p["model.lora.rank"] for p in found) == [1, 2, 4] and search.total == 3 and search.exhausted
    assert said[-1] == "every configuration of the search space was tried: the search ends with 3 trials instead of 9"
    assert len(list(tmp_path.glob("trials/*/trial.json"))) == 3
    for trial in told.get_trials():  # what repeats is told with the value of what it repeats
        assert trial.state == TrialState.COMPLETE and trial.value == pytest.approx(trial.params["model.lora.rank"] / 10)
    repeats = [trial for trial in told.get_trials() if "mmsweep_repeats" in trial.user_attrs]
    assert len(told.get_trials()) == 3 + len(repeats) == 3 + len(said) - 1


def test_a_repeat_of_a_trial_under_way_is_not_told_a_score(tmp_path: Path) -> None:
    search, told = small(tmp_path, 3)
    configs = [search.suggest(f"t{n}") for n in range(3)]
    assert sorted(c["params"]["model.lora.rank"] for c in configs if isinstance(c, dict)) == [1, 2, 4]
    states = {t.state for t in told.get_trials() if "mmsweep_repeats" in t.user_attrs}
    assert states <= {TrialState.FAIL}


def test_a_killed_sweep_of_a_small_space_suggests_what_an_undisturbed_one_does(tmp_path: Path) -> None:
    values = {"sweep__sampler__name": "tpe"}
    for name in "ab":
        (tmp_path / name).mkdir()
    undisturbed = run_all(small(tmp_path / "a", 9, **values)[0], tmp_path / "a")
    first, _ = small(tmp_path / "b", 9, **values)
    config = first.suggest("t0")
    assert isinstance(config, dict)
    train(tmp_path / "b", 0, [config["params"]["model.lora.rank"] / 10] * 4)
    first.on_trial_complete("t0", {"epoch": 4})
    again, _ = small(tmp_path / "b", 9, **values)
    assert run_all(again, tmp_path / "b") == undisturbed


def test_repeats_are_trained_with_another_seed_where_the_study_says_so(tmp_path: Path) -> None:
    search, told = small(tmp_path, 6, sweep__duplicates="reseed", train__seed=5)
    found = run_all(search, tmp_path)
    assert len(found) == 6 and len({(p["model.lora.rank"], p.get("train.seed", 5)) for p in found}) == 6
    for rank in {p["model.lora.rank"] for p in found}:
        seeds = [p.get("train.seed", 5) for p in found if p["model.lora.rank"] == rank]
        assert seeds == list(range(5, 5 + len(seeds)))
    recorded = [TrialFolder(p.parent).trial() for p in sorted(tmp_path.glob("trials/*/trial.json"))]
    assert [t["seed"] for t in recorded] == [p.get("train.seed", 5) for p in found]
    assert len(told.get_trials()) == 6
    with pytest.raises(UserError, match=r"sweep\.duplicates: a searched train.seed"):
        check_search(searched(SMALL, sweep__duplicates="reseed"))


def test_a_space_too_large_to_list_is_not_exhausted(tmp_path: Path) -> None:
    s = searched({"train.optimizer.lr": {"log_uniform": [1e-4, 1e-2]}})
    assert SearchSpace(s).untried(()) is None
    steps = SearchSpace(searched({"method.align_weight": {"uniform": [0, 0.9], "step": 0.1}}))
    tried = {identity({"method.align_weight": 0.1 * n}) for n in range(9)}
    assert [identity(p) for p in steps.untried(tried) or []] == [identity({"method.align_weight": 0.9})]
