"""The one look-up by name: lists a folder without importing it and imports one file on demand.

A catalog knows that a module file exists and that it defines, at top level, the factory its kind asks for; it knows
nothing of what the module does. A name is the file's name with '-' for '_'. Other distributions add names through entry
points of the group ``daptq.<kind>`` (``drift_model`` for a drift model) whose value is a module path:

    [project.entry-points."daptq.policy"]
    my-policy = "my_package.my_policy"

A module that was renamed says so with a literal ``FORMER_NAMES = ("old-name",)``: it is still found under the old name,
so that checkpoints that name it keep loading, and is listed under the new one alone.

What another distribution provides may be broken. It is refused where it is asked for by name, and left out with a
warning where everything of a kind is looked through, so that it stops nobody who does not use it.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import logging
import pkgutil
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from daptq.errors import DaptqError, InvalidInputError, UnknownNameError

__all__ = [
    "ACTIVATION_SCALINGS",
    "ALLOCATIONS",
    "COMPENSATIONS",
    "DRIFT_MODELS",
    "ENVIRONMENTS",
    "FOLDS",
    "KERNELS",
    "METHODS",
    "POLICIES",
    "ROUNDINGS",
    "SENSITIVITIES",
    "SOURCES",
    "Catalog",
]

LOG = logging.getLogger(__name__)

T = TypeVar("T")


ADVICE = "Install what it needs, update the distribution that provides it, or uninstall it."


@functools.cache
def _warn(message: str) -> None:
    """Warns once in a process."""
    LOG.warning(message)


@functools.cache
def _top_level_names(source: str) -> frozenset[str]:
    """Names that a module's source binds at top level by def, class, assignment or `from … import …`."""
    names: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return frozenset(names)


@functools.cache
def _former_names(source: str) -> tuple[str, ...]:
    """The literal that a module's source binds to ``FORMER_NAMES`` at top level."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "FORMER_NAMES" for t in node.targets
        ):
            return ast.literal_eval(node.value)
    return ()


def _source(folder: Path, module: pkgutil.ModuleInfo) -> str:
    """Text of a module's file, of a package's ``__init__.py``."""
    path = folder / module.name / "__init__.py" if module.ispkg else folder / f"{module.name}.py"
    return path.read_text(encoding="utf-8")


@functools.cache
def _installed(find: Callable[..., Iterable[EntryPoint]], group: str) -> tuple[EntryPoint, ...]:
    """Entry points of a group: `find` reads every installed distribution, which stay as they are in a process."""
    return tuple(find(group=group))


class Catalog:
    """The modules of one kind, by name.

    Args:
        kind: What the modules are, in the singular, for example ``"environment"``; used in messages and as the
            entry-point group ``daptq.<kind>``, spaces as underscores.
        package: Dotted name of the package whose folder is listed.
        provides: Top-level name that a module of this kind defines; ``{module}`` stands for the module's own name.
            Files that do not define it (mathematics that several methods share) are not listed.
    """

    def __init__(self, kind: str, package: str, *, provides: str) -> None:
        self.kind = kind
        self.package = package
        self.provides = provides

    def names(self) -> tuple[str, ...]:
        """Every name, sorted; no listed module is imported."""
        return tuple(sorted({*self._own(), *self._foreign()}))

    def usable(self, read: Callable[[str, Any], T], *, asked: str | None = None) -> dict[str, T]:
        """What `read` makes of everything that is provided, this package's own first.

        Args:
            read: Called with a name and what the module of this name provides.
            asked: The name, present or former, that somebody asked for; None where none was.

        Returns:
            What `read` returned, by name. What another distribution provides and cannot be loaded or read is named in
            a warning and left out.

        Raises:
            InvalidInputError: The name that was asked for is one of those.
        """
        asked = self._renamed().get(asked, asked) if asked is not None else None
        own, foreign = self._own(), self._foreign()
        found: dict[str, T] = {}
        for name in (*sorted(own), *sorted(foreign.keys() - own.keys())):
            if name not in foreign:
                found[name] = read(name, self.provided(name))
                continue
            try:
                found[name] = self._read(name, read)
            except DaptqError as error:
                if name == asked:
                    raise
                _warn(f"{self.kind} {name!r} of another distribution is left out: {error}")
        return found

    def _read(self, name: str, read: Callable[[str, Any], T]) -> T:
        """What `read` makes of one name of another distribution."""
        provided = self.provided(name)
        try:
            return read(name, provided)
        except DaptqError:
            raise
        except Exception as error:
            raise InvalidInputError(
                f"{self.kind} {name!r} must keep the contract of its kind, got {type(error).__name__}: {error}. "
                f"{ADVICE}"
            ) from error

    def load(self, name: str) -> ModuleType:
        """Imports the module called `name`.

        Args:
            name: A name of `names()`, or a former one.

        Raises:
            UnknownNameError: Nothing has this name; the message suggests near names.
            InvalidInputError: Two distributions provide this name, or another distribution's module cannot be imported.
        """
        name = self._renamed().get(name, name)
        own, foreign = self._own(), self._foreign()
        providers = [modules[name] for modules in (own, foreign) if name in modules]
        paths = {path for found in providers for path in found}
        if not paths:
            raise UnknownNameError(self.kind, name, self.names())
        if len(paths) > 1:
            listed = ", ".join(sorted(paths))
            raise InvalidInputError(
                f"{self.kind} {name!r} must be provided once, got {listed}. Uninstall all but one of the providers."
            )
        path = paths.pop()
        if name in own:
            return importlib.import_module(path)
        try:
            return importlib.import_module(path)
        except Exception as error:
            raise InvalidInputError(
                f"{self.kind} {name!r} must be a module that can be imported, got {type(error).__name__} from {path}: "
                f"{error}. {ADVICE}"
            ) from error

    def provided(self, name: str) -> Any:
        """What the module called `name` defines under the name that its kind asks for.

        Args:
            name: A name of `names()`, or a former one.

        Raises:
            UnknownNameError: Nothing has this name; the message suggests near names.
            InvalidInputError: Two distributions provide this name, or the module cannot be imported or does not define
                it.
        """
        module = self.load(name)
        wanted = self.provides.format(module=self._renamed().get(name, name).replace("-", "_"))
        if not hasattr(module, wanted):
            raise InvalidInputError(
                f"{self.kind} {name!r} must define {wanted}, got a module {module.__name__} without it. Correct its "
                "entry point."
            )
        return getattr(module, wanted)

    def _own(self) -> dict[str, tuple[str, ...]]:
        """Name to module path of the files in the package's folder."""
        return {name: (path,) for name, (path, _) in self._files().items()}

    def _renamed(self) -> dict[str, str]:
        """Present name by former name."""
        return {old: name for name, (_, source) in self._files().items() for old in _former_names(source)}

    def _files(self) -> dict[str, tuple[str, str]]:
        """Name to module path and source of the files in the package's folder that define the factory."""
        spec = importlib.util.find_spec(self.package)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {self.package!r}", name=self.package)
        found: dict[str, tuple[str, str]] = {}
        for folder in spec.submodule_search_locations or ():
            for module in pkgutil.iter_modules([folder]):
                source = _source(Path(folder), module)
                if not module.name.startswith("_") and self.provides.format(module=module.name) in _top_level_names(
                    source
                ):
                    found[module.name.replace("_", "-")] = (f"{self.package}.{module.name}", source)
        return found

    def _foreign(self) -> dict[str, tuple[str, ...]]:
        """Name to module paths of other distributions' entry points."""
        found: dict[str, tuple[str, ...]] = {}
        for point in _installed(entry_points, f"daptq.{self.kind.replace(' ', '_')}"):
            found[point.name] = (*found.get(point.name, ()), point.value)
        return found


POLICIES = Catalog("policy", "daptq.policies", provides="POLICY")
ENVIRONMENTS = Catalog("environment", "daptq.environments", provides="make")
SOURCES = Catalog("source", "daptq.calibration", provides="open_source")
METHODS = Catalog("method", "daptq.recipes", provides="{module}")
DRIFT_MODELS = Catalog("drift model", "daptq.drift.models", provides="DRIFT_MODEL")
ROUNDINGS = Catalog("rounding", "daptq.rounding", provides="ROUNDING")
ACTIVATION_SCALINGS = Catalog("activation scaling", "daptq.activation_scaling", provides="ACTIVATION_SCALING")
SENSITIVITIES = Catalog("sensitivity", "daptq.sensitivity", provides="SENSITIVITY")
ALLOCATIONS = Catalog("allocation", "daptq.allocation", provides="ALLOCATION")
COMPENSATIONS = Catalog("compensation", "daptq.compensation", provides="COMPENSATION")
FOLDS = Catalog("fold", "daptq.interfaces", provides="FOLD")
KERNELS = Catalog("kernel", "daptq.kernels.linear.backends", provides="unavailable")
