"""Ray Train with no more processes than a host needs: what of it runs where, and what is left out.

Each of the others takes seconds to start, before a rank can, and its share of the CPUs for as long as the host lives.
The only file that knows names of Ray Train's own; tests/unit/test_start.py says which ones a new Ray has changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import ray
from ray.train.v2._internal.execution.checkpoint.sync_actor import SynchronizationActor
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup, worker_group
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

# Callbacks with a process each: one serves Ray Datasets, of which there are none, and one asks the dashboard every
# second whether the controller lives (hosts.py, `_free`, says why that cannot be relied on, and does it instead).
USELESS = ("DatasetsCallback", "PlacementGroupCleanerCallback")


class _Scaling(FixedScalingPolicy):
    """A host has the workers it was given, and asks nobody for them but through its placement group.

    Ray Train also announces them to Ray Data's coordinator of clusters that grow, which is one more process to wait
    for, and of no use where no Ray Data asks for the same nodes: a placement group that waits makes a cluster grow.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


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


class LeanTrainer(DataParallelTrainer):
    """A trainer without the callbacks that hosts have no use for, whose controller runs in the process that calls it.

    Args:
        reserved: told the id of every placement group as soon as it is asked for.
        arguments: DataParallelTrainer's.
    """

    def __init__(self, reserved: Callable[[str], Any], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._reserved = reserved

    def _create_default_callbacks(self) -> list[Any]:
        return [c for c in super()._create_default_callbacks() if type(c).__name__ not in USELESS]

    def _initialize_and_run_controller(self, **made_of: Any) -> Any:
        reserved = self._reserved

        class Group(WorkerGroup):
            def _create_placement_group(self, *arguments: Any, **named: Any) -> Any:
                handle = super()._create_placement_group(*arguments, **named)
                reserved(handle.placement_group.id.hex())
                return handle

        module: Any = worker_group  # in the whole process, which is the keeper's
        module.SynchronizationActor = _Unstarted(SynchronizationActor)
        config: Any = self.scaling_config  # ray.train's stubs show the class of Train V1
        controller = TrainController(**{**made_of, "scaling_policy": _Scaling(config)})
        controller.worker_group_cls = Group
        asyncio.run(controller.run())
        return controller.get_result()


def host_trainer(joined: bool, reserved: Callable[[str], Any], **arguments: Any) -> LeanTrainer:
    """Ray Train's trainer for a host; its `fit` blocks until the host ends.

    Args:
        joined: whether there are ranks or GPUs to join, which `TorchTrainer` does. Without it, the process that runs
            this imports no torch.
        reserved: see LeanTrainer.
        arguments: DataParallelTrainer's.
    """
    if not joined:
        return LeanTrainer(reserved, **arguments)
    from ray.train.torch import TorchConfig, TorchTrainer

    class LeanTorch(LeanTrainer, TorchTrainer):  # type: ignore[misc]  # ray.train's stubs show the classes of Train V1
        pass

    lean: Any = LeanTorch
    backend = None if arguments["scaling_config"].use_gpu else "gloo"
    return lean(reserved, torch_config=TorchConfig(backend=backend), **arguments)  # type: ignore[no-any-return]
