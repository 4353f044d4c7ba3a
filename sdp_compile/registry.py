"""Classes by name: registered by a decorator, or offered by installed packages as entry points."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from sdp_compile.errors import SDPError, did_you_mean

Base = TypeVar("Base")
Registered = TypeVar("Registered", bound=type[Any])


class Registry(Generic[Base]):
    """The subclasses of ``base`` by name.

    Args:
        what: What one of them is called in messages, such as ``"policy"``.
        base: Their base class.
        group: The entry-point group in which other packages offer theirs.
        error: The error for a name that does not exist.
        hint: Ends the message about an unknown name.
    """

    def __init__(self, what: str, base: type[Any], group: str, error: type[SDPError], hint: str = "") -> None:
        self.what, self.base, self.group, self.error, self.hint = what, base, group, error, hint
        self._registered: dict[str, type[Base]] = {}

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """Returns a class decorator that makes the class known as ``name``."""

        def decorate(cls: Registered) -> Registered:
            before = self._registered.get(name)
            # A notebook cell that is run again defines the same class again.
            if before is not None and before.__qualname__ != cls.__qualname__:
                raise self.error(
                    f"The {self.what} {name!r} is registered already: {before.__module__}.{before.__qualname__}."
                )
            self._registered[name] = cls
            return cls

        return decorate

    def names(self) -> list[str]:
        """Returns all names, sorted; nothing is loaded."""
        return sorted({*self._registered, *(entry.name for entry in entry_points(group=self.group))})

    def all(self) -> dict[str, type[Base]]:
        """Returns all classes by name; loads those that installed packages offer."""
        return {**{entry.name: self._loaded(entry) for entry in entry_points(group=self.group)}, **self._registered}

    def __getitem__(self, name: str) -> type[Base]:
        if name in self._registered:
            return self._registered[name]
        for entry in entry_points(group=self.group, name=name):
            return self._loaded(entry)
        raise self.error(
            f"There is no {self.what} {name!r}.{did_you_mean(name, self.names())} "
            f"Known names: {', '.join(self.names())}.{self.hint}"
        )

    def _loaded(self, entry: EntryPoint) -> type[Base]:
        try:
            found = entry.load()
        except Exception as error:  # whatever the other package raises, the user needs its name
            raise self.error(f"The {self.what} {entry.name!r} ({entry.value}) cannot be loaded: {error}.") from error
        if not (isinstance(found, type) and issubclass(found, self.base)):
            raise self.error(
                f"The {self.what} {entry.name!r} ({entry.value}) is not a subclass of {self.base.__name__}."
            )
        return found
