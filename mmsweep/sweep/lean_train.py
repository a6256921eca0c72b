"""The trainer of a host: Ray Train's `TorchTrainer`, or the same with fewer processes where this Ray allows it.

`TorchTrainer` starts a controller, a synchronisation actor and a cleaner of placement groups for each host, and a
coordinator for all. Each takes seconds to start before a rank can, and a share of the CPUs as long as the host lives
(docs/results/sweep_overhead.md). A lean trainer does without them, by names of Ray Train that are not public. `PRIVATE`
lists all of them; where this Ray lacks one, hosts are plain `TorchTrainer` runs, and so they are where the environment
sets MMSWEEP_PLAIN_TRAINER.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from functools import cache
from operator import attrgetter
from typing import Any

import ray

INTERNAL = "ray.train.v2._internal.execution"
GROUP = f"{INTERNAL}.worker_group.worker_group"
TRAINER = "ray.train.v2.api.data_parallel_trainer"
PRIVATE = (
    f"{TRAINER}:DataParallelTrainer._create_default_callbacks",
    f"{TRAINER}:DataParallelTrainer._initialize_and_run_controller",
    f"{INTERNAL}.controller:TrainController.run",
    f"{INTERNAL}.controller:TrainController.get_result",
    f"{INTERNAL}.scaling_policy:ScalingPolicy.after_controller_start",
    f"{INTERNAL}.scaling_policy:ScalingPolicy._maybe_send_resource_request",
    f"{GROUP}:SynchronizationActor",
)
# Callbacks with a process each: one serves Ray Datasets, of which there are none, and one asks the dashboard every
# second whether the controller lives (`hosts._free` says why that cannot be relied on, and does it instead).
UNUSED_CALLBACKS = ("DatasetsCallback", "PlacementGroupCleanerCallback")

log = logging.getLogger("mmsweep.hosts")


@cache
def lean_works() -> bool:
    """Whether this Ray has every name of `PRIVATE`; if not, a line in the log says which one is missing."""
    for name in PRIVATE:
        module, _, path = name.partition(":")
        try:
            attrgetter(path)(importlib.import_module(module))
        except (ImportError, AttributeError):
            log.warning("Ray %s has no %s: hosts are plain TorchTrainer runs", ray.__version__, name)
            return False
    return True


def host_trainer(lean: bool, joined: bool, **arguments: Any) -> Any:
    """Ray Train's trainer for a host; its `fit` blocks until the host ends.

    Args:
        lean: do without the processes that a host has no use for, if this Ray allows it.
        joined: whether there are several ranks or GPUs, which `TorchTrainer` joins. Without them, the process of a lean
            trainer imports no torch.
        arguments: TorchTrainer's.
    """
    lean = lean and lean_works()
    if lean and not joined:
        base: Any = importlib.import_module(TRAINER).DataParallelTrainer
        return _lean(base)(**arguments)
    from ray.train.torch import TorchConfig, TorchTrainer

    config = TorchConfig(backend=None if arguments["scaling_config"].use_gpu else "gloo")
    return (_lean(TorchTrainer) if lean else TorchTrainer)(torch_config=config, **arguments)


def _lean(base: Any) -> Any:
    """A trainer class whose controller runs in the calling process, without the callbacks that hosts do not use."""
    controllers: Any = importlib.import_module(f"{INTERNAL}.controller")
    groups: Any = importlib.import_module(GROUP)

    class LeanTrainer(base):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            return [c for c in super()._create_default_callbacks() if type(c).__name__ not in UNUSED_CALLBACKS]

        def _initialize_and_run_controller(self, **made_of: Any) -> Any:
            if not isinstance(
                groups.SynchronizationActor, _Unstarted
            ):  # in the whole process, which is the supervisor's
                groups.SynchronizationActor = _Unstarted(groups.SynchronizationActor)
            # A host has the workers it was given. Ray Train also announces them to Ray Data's coordinator of clusters
            # that grow: another process, of no use without Ray Data. A placement group that waits makes a cluster grow.
            policy = made_of["scaling_policy"]
            policy.after_controller_start = policy._maybe_send_resource_request = lambda *_: None
            controller = controllers.TrainController(**made_of)
            asyncio.run(controller.run())
            return controller.get_result()

    return LeanTrainer


class _Unstarted:
    """An actor class whose actors are dead before they start.

    `ray.train.report`, `get_preemption_info` and `ray.train.collective` wait for other ranks by Ray Train's
    SynchronizationActor. Hosts call none of them (which would raise ActorDiedError): they report to the board.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def options(self, **options: Any) -> _Unstarted:
        return _Unstarted(self._actor.options(**options))

    def remote(self, *arguments: Any, **named: Any) -> Any:
        handle = self._actor.remote(*arguments, **named)
        ray.kill(handle)
        return handle
