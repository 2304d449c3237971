from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from daptq import catalog
from daptq.catalog import ENVIRONMENTS, METHODS, POLICIES, SOURCES, Catalog
from daptq.errors import InvalidInputError, UnknownNameError

BOOM = "raise RuntimeError('imported')\n"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package `shelf`: two things, one as a folder, a private module and shared mathematics."""
    folder = tmp_path / "shelf"
    (folder / "in_folder").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "good_one.py").write_text("def make() -> int:\n    return 1\n")
    (folder / "bad.py").write_text("make = 1\n" + BOOM)
    (folder / "_private.py").write_text("def make() -> int:\n    return 2\n")
    (folder / "mathematics.py").write_text("def solve() -> int:\n    return 3\n")
    (folder / "in_folder" / "__init__.py").write_text("from shelf._private import make\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "shelf"
    for name in [name for name in sys.modules if name.split(".")[0] == "shelf"]:
        del sys.modules[name]


def test_names_lists_without_importing(package: str) -> None:
    assert Catalog("thing", package, provides="make").names() == ("bad", "good-one", "in-folder")
    assert not any(name.startswith("shelf.") for name in sys.modules)


def test_load_imports_one_file_on_demand(package: str) -> None:
    module = Catalog("thing", package, provides="make").load("good-one")
    assert module.make() == 1
    assert "shelf.in_folder" not in sys.modules


def test_provided_is_what_the_module_defines(package: str) -> None:
    assert Catalog("thing", package, provides="make").provided("good-one")() == 1
    assert Catalog("recipe", "daptq.recipes", provides="{module}").provided("da-ptq")().name == "da-ptq"


def test_a_broken_file_fails_only_when_loaded(package: str) -> None:
    with pytest.raises(RuntimeError, match="imported"):
        Catalog("thing", package, provides="make").load("bad")


def test_the_factory_may_carry_the_file_name(package: str, tmp_path: Path) -> None:
    (tmp_path / "shelf" / "solver.py").write_text("def solver() -> int:\n    return 4\n")
    assert Catalog("thing", package, provides="{module}").names() == ("solver",)


@pytest.mark.parametrize("name", ["goood-one", "good_one", "Good-One"])
def test_unknown_name_suggests(package: str, name: str) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'good-one'"):
        Catalog("thing", package, provides="make").load(name)


@pytest.mark.parametrize("name", ["", "mathematics", "-private", "_private", "..errors"])
def test_what_is_no_name_is_refused(package: str, name: str) -> None:
    with pytest.raises(UnknownNameError):
        Catalog("thing", package, provides="make").load(name)


def test_a_package_that_does_not_exist() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        Catalog("thing", "no_such_package", provides="make").names()


def _plug_in(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> None:
    def entry_points(*, group: str) -> list[EntryPoint]:
        return [EntryPoint(name, value, group) for name, value in points] if group == "daptq.some_thing" else []

    monkeypatch.setattr(catalog, "entry_points", entry_points)


def test_other_distributions_add_names(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _plug_in(monkeypatch, ("json-thing", "json"))
    things = Catalog("some thing", package, provides="make")
    assert things.names() == ("bad", "good-one", "in-folder", "json-thing")
    assert things.load("json-thing").__name__ == "json"
    assert "json-thing" not in Catalog("other", package, provides="make").names()


def test_an_entry_point_without_the_factory_is_refused(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _plug_in(monkeypatch, ("json-thing", "json"))
    with pytest.raises(InvalidInputError, match="some thing 'json-thing' must define make, got a module json without"):
        Catalog("some thing", package, provides="make").provided("json-thing")


def test_a_name_provided_twice_is_refused(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _plug_in(monkeypatch, ("good-one", "json"))
    with pytest.raises(InvalidInputError, match=r"'good-one' must be provided once, got json, shelf.good_one"):
        Catalog("some thing", package, provides="make").load("good-one")


@pytest.fixture
def plugged(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """A catalog of two own things and four of other distributions, of which one can be used."""
    for path in ("bad.py", "in_folder/__init__.py"):
        (tmp_path / "shelf" / path).unlink()
    (tmp_path / "shelf" / "zebra.py").write_text("def make() -> int:\n    return 5\n")
    other = tmp_path / "other_shelf"
    other.mkdir()
    (other / "__init__.py").write_text("")
    (other / "fine.py").write_text("def make() -> int:\n    return 7\n")
    (other / "boom.py").write_text(BOOM)
    (other / "text.py").write_text("make = 'no function'\n")
    monkeypatch.setattr(
        sys, "modules", {n: m for n, m in sys.modules.items() if n.split(".")[0] not in ("shelf", "other_shelf")}
    )
    names = {"fine": "fine", "broken": "boom", "lost": "nowhere", "wordy": "text"}
    _plug_in(monkeypatch, *[(name, f"other_shelf.{module}") for name, module in names.items()])
    return Catalog("some thing", package, provides="make")


def test_what_cannot_be_used_is_left_out_and_named(plugged: Catalog, caplog: pytest.LogCaptureFixture) -> None:
    assert plugged.names() == ("broken", "fine", "good-one", "lost", "wordy", "zebra")
    made = plugged.usable(lambda name, make: (name, make()))
    # This package's own come first.
    assert list(made.items()) == [(n, (n, v)) for n, v in (("good-one", 1), ("zebra", 5), ("fine", 7))]
    warnings = {record.getMessage() for record in caplog.records}
    assert {message.split(" of another distribution is left out: ")[0] for message in warnings} == {
        f"some thing {name!r}" for name in ("broken", "lost", "wordy")
    }
    assert any("got RuntimeError from other_shelf.boom: imported. Install what it needs" in m for m in warnings)
    assert any("must keep the contract of its kind, got TypeError: 'str' object" in m for m in warnings)
    caplog.clear()
    plugged.usable(lambda name, make: (name, make()))
    assert not caplog.records  # once is enough


@pytest.mark.parametrize("name", ["broken", "lost", "wordy"])
def test_what_cannot_be_used_is_refused_where_it_is_asked_for(plugged: Catalog, name: str) -> None:
    with pytest.raises(InvalidInputError, match=f"some thing {name!r} must .*uninstall it"):
        plugged.usable(lambda _, make: make(), asked=name)


def test_what_this_package_provides_is_never_left_out(plugged: Catalog, package: str, tmp_path: Path) -> None:
    (tmp_path / "shelf" / "bad.py").write_text("make = 1\n" + BOOM)
    with pytest.raises(RuntimeError, match="imported"):
        plugged.usable(lambda _, make: make)


def test_what_ships() -> None:
    assert {"cogact-small", "cogact-public"} <= set(POLICIES.names())
    assert "cogact" not in POLICIES.names()
    assert POLICIES.load("cogact") is POLICIES.load("cogact-small")
    assert "tabletop" in ENVIRONMENTS.names()
    assert "tabletop" in SOURCES.names()
    assert {"da-ptq", "round-to-nearest"} <= set(METHODS.names())


@pytest.mark.parametrize("shelf", [POLICIES, ENVIRONMENTS, SOURCES, METHODS, catalog.DRIFT_MODELS, catalog.KERNELS])
def test_everything_listed_loads_and_provides_its_factory(shelf: Catalog) -> None:
    assert shelf.names()
    for name in shelf.names():
        assert hasattr(shelf.load(name), shelf.provides.format(module=name.replace("-", "_")))
