"""Classes by name: registered with a decorator, or offered by installed packages."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints

import pytest

from sdp_compile.errors import SDPError
from sdp_compile.registry import Registry


class Shape:
    """The base class of what is registered here."""


class ShapeError(SDPError):
    """The error of the registry."""


class Hexagon(Shape):
    """What another package offers."""


GROUP = "tests.shapes"


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> Registry[Shape]:
    """A registry with one class of its own, and three that other packages claim to offer."""
    offered = EntryPoints(
        [
            EntryPoint("hexagon", f"{__name__}:Hexagon", GROUP),
            EntryPoint("missing", "no_such_module:Shape", GROUP),
            EntryPoint("path", "pathlib:Path", GROUP),
            EntryPoint("other", "pathlib:Path", "another.group"),
        ]
    )
    monkeypatch.setattr("sdp_compile.registry.entry_points", lambda **which: offered.select(**which))
    registry: Registry[Shape] = Registry("shape", Shape, GROUP, ShapeError, hint="Shapes are flat.")

    @registry.register("square")
    class Square(Shape):
        pass

    return registry


def test_a_class_is_found_by_the_name_that_it_is_registered_under(shapes: Registry[Shape]) -> None:
    @shapes.register("circle")
    class Circle(Shape):
        pass

    assert Circle.__name__ == "Circle" and shapes["circle"] is Circle


def test_the_class_of_another_package_is_found_by_the_name_of_its_entry_point(shapes: Registry[Shape]) -> None:
    assert shapes["hexagon"].__name__ == "Hexagon"


def test_names_are_sorted_and_load_nothing(shapes: Registry[Shape]) -> None:
    assert shapes.names() == ["hexagon", "missing", "path", "square"]


def test_all_loads_every_class(monkeypatch: pytest.MonkeyPatch, shapes: Registry[Shape]) -> None:
    with pytest.raises(ShapeError, match="The shape 'missing' of 'no_such_module:Shape' cannot be loaded: No module"):
        shapes.all()
    offered = EntryPoints([EntryPoint("hexagon", f"{__name__}:Hexagon", GROUP)])
    monkeypatch.setattr("sdp_compile.registry.entry_points", lambda **which: offered.select(**which))
    assert sorted(shapes.all()) == ["hexagon", "square"]


def test_a_registered_class_goes_before_one_of_another_package(shapes: Registry[Shape]) -> None:
    @shapes.register("hexagon")
    class Mine(Shape):
        pass

    assert shapes["hexagon"] is Mine


def test_a_class_that_is_defined_again_replaces_the_first(shapes: Registry[Shape]) -> None:
    def define() -> type[Shape]:
        @shapes.register("circle")
        class Circle(Shape):
            pass

        return Circle

    first, second = define(), define()
    assert first is not second and shapes["circle"] is second


def test_two_classes_cannot_have_one_name(shapes: Registry[Shape]) -> None:
    with pytest.raises(ShapeError, match=r"already a shape 'square': .*Square\. Choose another name"):

        @shapes.register("square")
        class Rectangle(Shape):
            pass


def test_what_is_registered_must_be_a_subclass_of_the_base(shapes: Registry[Shape]) -> None:
    with pytest.raises(ShapeError, match="The shape 'number' must be a subclass of Shape, got <class 'int'>"):
        shapes.register("number")(int)
    with pytest.raises(ShapeError, match="The shape 'path' must be a subclass of Shape, got 'pathlib:Path'"):
        shapes["path"]


@pytest.mark.parametrize(("name", "suggestion"), [("sqare", " Did you mean 'square'?"), ("zzz", "")])
def test_an_unknown_name_lists_the_known_ones(shapes: Registry[Shape], name: str, suggestion: str) -> None:
    with pytest.raises(ShapeError) as error:
        shapes[name]
    assert str(error.value) == (
        f"Unknown shape {name!r}.{suggestion} Known names: hexagon, missing, path, square. Shapes are flat."
    )


def test_an_unknown_name_of_an_empty_registry() -> None:
    with pytest.raises(ShapeError, match=r"^Unknown shape 'square'\. Known names: none\.$"):
        Registry("shape", Shape, "tests.nothing", ShapeError)["square"]
