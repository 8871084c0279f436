"""Stopping at the same step in all processes of a run, where it can be saved."""

from __future__ import annotations

from ccreid_cli.machine.distributed import Group
from ccreid_cli.machine.signals import StopFlag, StopRequested

CHECK_STEPS = 10
"""Several processes agree on stopping at most every so many steps: it makes them wait for one another."""


class SharedStop:
    """Whether any process of a run was asked to stop.

    Args:
        flag: Set by a signal to this process.
        group: The processes.
        every: Steps between two questions to the others, at most `CHECK_STEPS`.
    """

    def __init__(self, flag: StopFlag, group: Group, every: int) -> None:
        self._flag, self._group = flag, group
        self._every = min(every, CHECK_STEPS)

    def is_due(self, steps_done: int, *, is_last: bool) -> bool:
        """Tell whether to stop after a step, the same in every process; most steps ask nobody."""
        if self._group.world > 1 and steps_done % self._every and not is_last:
            return False
        return self._anybody_asked()

    def check(self) -> None:
        """Ask all processes.

        Raises:
            StopRequested: One was asked to stop.
        """
        if self._anybody_asked():
            raise StopRequested

    def check_alone(self) -> None:
        """As `check`, within a stage that several processes share: none of them may leave it by itself."""
        if self._group.world == 1:
            self._flag.check()

    def signal_number(self) -> int:
        """Return the signal that a process got; 0 for none."""
        return self._group.maximum(self._flag.signal_number)

    def _anybody_asked(self) -> bool:
        return bool(self._group.maximum(int(bool(self._flag))))
