"""The workers that save or load together: they go on together or fail together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from sdp_compile.errors import SDPError
from sdp_compile.runtime.comm.handshake import Handshake
from sdp_compile.runtime.peers import Peers

_LEAST_SECONDS = 1.0


class Team:
    """The workers of a model in one call.

    Args:
        peers: This worker's connection to the others; None without any.
        what: The call, for errors.
    """

    def __init__(self, peers: Peers | None, what: str) -> None:
        self._groups, self._what = None if peers is None else peers.groups, what

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The workers' process group; None without any, or without real peers in it."""
        return None if self._groups is None or self._groups.peers_are_fake else self._groups.group

    @property
    def limit(self) -> float:
        """How long a worker waits for the others, in seconds."""
        return 0.0 if self._groups is None else max(self._groups.timeout.total_seconds(), _LEAST_SECONDS)

    @contextmanager
    def together(self, statement: Callable[[], str] = str, what: str = "argument") -> Iterator[None]:
        """A stage after which all workers go on, or none: an error of one is an error of all. Collective.

        Args:
            statement: Returns what must be the same on all workers; called at the end.
            what: What it is called in the error.

        Raises:
            SDPError: If a file cannot be read or written.
            DistributedError: If another worker failed, or states something else.
        """
        with Handshake(self.group, self._what, self.limit) as handshake:
            try:
                yield
            except OSError as error:
                raise as_sdp_error(self._what, error) from error
            handshake.agree(statement(), what=what)

    def gather(self, value: Any) -> list[Any]:
        """Returns every worker's value, plain data for JSON. Collective."""
        return [value] if self._groups is None else self._groups.gather_json(value)


def as_sdp_error(what: str, error: Exception) -> Exception:
    """Returns an error of files as one that says in which call it was; other errors as they are."""
    if not isinstance(error, OSError):
        return error
    place = "" if error.filename is None else f"{error.filename}: "
    return SDPError(f"{what}: {place}{error.strerror or error}.")
