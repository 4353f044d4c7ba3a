"""Methods of compiled modules for whose work the layers above are needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.optim.optimizer import Optimizer

from sdp_compile.lowering import Lowered
from sdp_compile.planning.moves import Traffic
from sdp_compile.policies import Schedule
from sdp_compile.runtime.owners.majority import Repair


class Doors:
    """Methods of compiled modules that import what they call from the layers above."""

    lowered: Lowered
    schedule: Schedule | None

    if TYPE_CHECKING:

        @property
        def rank(self) -> int: ...

    def replan(self, policy: Any, optimizer: Optimizer | Sequence[Optimizer] | None = None) -> Traffic:
        """Gives the model another plan for the same workers, and moves values and optimizer states. Collective.

        Call it between an optimizer's step and the next backward. Only what its receiver does not have is sent, and
        what was captured is not captured again. The model gets new Parameter objects where a worker holds another part,
        the optimizers get them in their groups, with the states of each element. Gradients are dropped. Mode, settings,
        forward hooks, random states and this object stay. Running statistics become those of `full_state_dict`.

        Args:
            policy: A `Policy`, its name, the path of its TOML file, its fields, or a `Plan` of this model.
            optimizer: The optimizer of the model's parameters, perhaps a `ShardedOptimizer`; several in a sequence.

        Returns:
            What the workers have sent each other. `Plan.moves` tells it in advance.

        Raises:
            SDPError: If the policy or plan does not fit, gradients are not synchronised, or an optimizer cannot follow.
                Then the model is as before.
            DistributedError: If the workers do not agree, or there is no process group.
        """
        from sdp_compile.replanning.replan import replan

        return replan(self, policy, optimizer)

    def advance(self, step: int, optimizer: Optimizer | Sequence[Optimizer] | None = None) -> Traffic | None:
        """Does what the schedule asks for before a step: if that step has another policy, `replan`. Collective.

        Call it before every step with the number of steps done, also after resuming. Only steps that change the plan
        cost anything. The learning rate is not changed: pass `Schedule.rate` to a scheduler. What the schedule's
        ``rate_by_owners`` does, optimizers of the model's parameters do in their steps.

        Args:
            step: The number of steps done, the same on all workers.
            optimizer: The optimizer of the model's parameters, perhaps a `ShardedOptimizer`; several in a sequence.

        Returns:
            What the workers have sent each other; None if the plan stays.

        Raises:
            SDPError: If the model has no schedule, or `replan` cannot follow it. Then the model is as before.
            DistributedError: If the workers do not agree.
        """
        from sdp_compile.replanning.advance import advance

        return advance(self, step, optimizer)

    def repair(self, optimizer: Optimizer | Sequence[Optimizer] | None = None) -> Repair:
        """Repairs values and optimizer states that differ between the owners of a unit. Collective.

        Call it after a `DamagedState`, between two steps. Each element gets the bits that more than half of its owners
        hold. Copies of an element are its owners' values, and its owners' states unless a `ShardedOptimizer` splits
        these. Then the next step compares everything.

        Args:
            optimizer: The optimizer of the model's parameters; several in a sequence.

        Returns:
            What was repaired: parameters, units and workers.

        Raises:
            DamagedState: If two owners differ, or no majority agrees, or values are infinite or NaN on all owners. Then
                the model is as before.
            DistributedError: If the workers do not agree, or there is no process group.
        """
        from sdp_compile.repairing.repair import repair

        return repair(self, optimizer)

    def inspect(self, view: str = "structure", **options: Any) -> Any:
        """Returns a view of what was compiled, for the terminal or a notebook.

        Args:
            view: ``"structure"``, ``"owners"``, ``"graph"``, ``"diff"``, ``"cost"`` or ``"phases"``.
            options: The options of ``sdp-compile inspect`` for the view, such as ``rank`` or the glob ``module``.

        Returns:
            An object that prints as text, renders as HTML in a notebook and returns the data from ``to_dict()``.

        Raises:
            SDPError: If there is no such view or option.
        """
        from sdp_compile.inspector import inspect

        return inspect(self, view, **options)  # type: ignore[arg-type]  # SDPModule has this mixin

    def report(self, path: str | Path) -> None:
        """Writes the report page of this worker's subnetwork, an HTML file that loads nothing from the network.

        Args:
            path: The file to write.
        """
        from sdp_compile.inspector import Subject
        from sdp_compile.report_page import write_report

        write_report(Subject.of(self.lowered), path, self.rank, schedule=self.schedule)
