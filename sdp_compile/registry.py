"""Classes by name: registered with a decorator, or offered by installed packages as entry points."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from sdp_compile.errors import SDPError, did_you_mean

Base = TypeVar("Base")
Registered = TypeVar("Registered", bound=type[Any])


class Registry(Generic[Base]):
    """The subclasses of ``base`` by name.

    ``registry[name]`` returns a class, and raises ``error`` if the name is unknown.

    Args:
        what: What one of them is called in messages, such as ``"policy"``.
        base: Their base class.
        group: The entry-point group in which other packages offer theirs.
        error: The class of all errors that the registry raises.
        hint: A sentence that ends the message about an unknown name.
    """

    def __init__(self, what: str, base: type[Any], group: str, error: type[SDPError], hint: str = "") -> None:
        self.what, self.base, self.group, self.error, self.hint = what, base, group, error, hint
        self._registered: dict[str, type[Base]] = {}

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """Returns a class decorator that makes the class known as ``name``.

        A class may be defined again, as in a notebook cell that runs twice; the new one replaces the old.

        Raises:
            SDPError: If the class is not a subclass of ``base``, or another class has the name.
        """

        def decorate(cls: Registered) -> Registered:
            if not self._fits(cls):
                raise self.error(f"The {self.what} {name!r} must be a subclass of {self.base.__name__}, got {cls!r}.")
            before = self._registered.get(name)
            if before is not None and before.__qualname__ != cls.__qualname__:
                raise self.error(
                    f"There is already a {self.what} {name!r}: {before.__module__}.{before.__qualname__}. "
                    "Choose another name."
                )
            self._registered[name] = cls
            return cls

        return decorate

    def names(self) -> list[str]:
        """Returns all names, sorted. Nothing is loaded."""
        return sorted({*self._registered, *(entry.name for entry in entry_points(group=self.group))})

    def all(self) -> dict[str, type[Base]]:
        """Returns all classes by name. Loads those that installed packages offer.

        Raises:
            SDPError: If one of them cannot be loaded, or is not a subclass of ``base``.
        """
        return {**{entry.name: self._loaded(entry) for entry in entry_points(group=self.group)}, **self._registered}

    def __getitem__(self, name: str) -> type[Base]:
        if name in self._registered:
            return self._registered[name]
        for entry in entry_points(group=self.group, name=name):
            return self._loaded(entry)
        hint = f" {self.hint}" if self.hint else ""
        raise self.error(
            f"Unknown {self.what} {name!r}.{did_you_mean(name, self.names())} "
            f"Known names: {', '.join(self.names()) or 'none'}.{hint}"
        )

    def _fits(self, found: Any) -> bool:
        return isinstance(found, type) and issubclass(found, self.base)

    def _loaded(self, entry: EntryPoint) -> type[Base]:
        try:
            found: type[Base] = entry.load()
        except Exception as error:  # another package may raise anything, and the user needs its name
            raise self.error(f"The {self.what} {entry.name!r} of {entry.value!r} cannot be loaded: {error}.") from error
        if not self._fits(found):
            raise self.error(
                f"The {self.what} {entry.name!r} must be a subclass of {self.base.__name__}, got {entry.value!r}."
            )
        return found
