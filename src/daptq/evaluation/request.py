"""What an evaluation is asked: policies, environment, episodes, and how they are run.

The module imports nothing heavy, so that the command line can read the fields of `Evaluation` and make its options of
them; what the checks need is imported when a request is built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from daptq.catalog import ENVIRONMENTS
from daptq.errors import InvalidInputError, UnknownNameError

if TYPE_CHECKING:
    from daptq.evaluation.worker_context import PolicySource
    from daptq.monitoring.interface_reference import InterfaceReference
    from daptq.statistics.stopping import EarlyStop

__all__ = ["ALL", "Evaluation"]

ALL = "all"


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """A request: every policy runs the same episodes, and each candidate is compared with the baseline.

    Attributes:
        candidates: Policies to evaluate: names, folders or loaded policies; a mapping gives them labels.
        against: Full-precision baseline, run once on the same episodes; None for success rates alone.
        environment: Environment; `daptq list environments` names them.
        variant: The variant of the environment to run; None for the nominal scene.
        variants: Variant of the environment to run as well as the nominal scene, or all.
        tasks: Task to ask; all of the environment where none is named.
        episodes: Episodes over all tasks together.
        seed: Seed of initial states and diffusion noise.
        workers: Processes; the result does not depend on it. One that dies is replaced and its episode done again.
        ray: Ray cluster that the workers live on, as host:6379, auto or local; None for this machine.
        batch: Episodes that share one call of the policy; faster. Rounding of actions depends on it.
        stop_margin: End as soon as it is settled, for every candidate, whether it loses more than this fraction of
            success; None to run every episode. See `daptq.statistics.stopping`.
        drift_states: States, saved along the baseline's episodes, from which every policy continues; None for one per
            episode. On variants policies do not continue from saved states.
        closed_loop: Whether candidates run whole episodes; otherwise they only continue from the baseline's states, at
            a fifth of the cost, and what episodes would say about them is None.
        monitor: What is normal at the interface of the first candidate, whose episodes are watched; None watches none.
        journal: File that keeps finished episodes; a run that was killed continues from it. With `variants` it is a
            folder with a file for each condition: ``nominal.jsonl``, and one named after each variant.

    Raises:
        UnknownNameError: The environment, a variant or a task is not known.
        InvalidInputError: A count is out of range, no policy or task is named, or two settings exclude each other.
    """

    candidates: Mapping[str, PolicySource] | Sequence[PolicySource]
    against: PolicySource | None = None
    environment: str = "tabletop"
    variant: str | None = None
    variants: Sequence[str] = ()
    tasks: Sequence[str] | None = None
    episodes: int = 100
    seed: int = 0
    workers: int = 1
    ray: str | None = None
    batch: int = 1
    stop_margin: float | None = None
    drift_states: int | None = None
    closed_loop: bool = True
    monitor: InterfaceReference | None = None
    journal: Path | None = None

    def __post_init__(self) -> None:
        from daptq.closed_loop.episodes import schedule_episodes

        schedule_episodes(self.asked, episodes=self.episodes, seed=self.seed)
        for name, count in (("batch", self.batch), ("workers", self.workers)):
            if count < 1:
                raise InvalidInputError(f"{name} must be at least 1, got {count}. Use 1 for one after another.")
        if not self.candidates:
            raise InvalidInputError("candidates must hold at least one policy, got none. Name a policy or a folder.")
        self._check_variants()
        if self.stop_margin is not None:
            if self.against is None or not self.closed_loop or self.variants:
                raise InvalidInputError(
                    "stop_margin must come with a baseline and whole episodes and without variants. Name the baseline, "
                    "or drop it."
                )
            self.early_stop  # noqa: B018  (refuses a margin and a number of episodes)
        if self.monitor is not None and not self.closed_loop:
            message = "a monitor must have whole episodes to watch, got states alone."
            raise InvalidInputError(message + " Leave one of them out.")

    def _check_variants(self) -> None:
        known = getattr(ENVIRONMENTS.load(self.environment), "VARIANTS", {})
        named = [name for name in self.variants if name != ALL] + ([] if self.variant is None else [self.variant])
        for name in named:
            if name not in known:
                raise UnknownNameError("variant", name, known)
        if self.variants and not self.described_variants:
            message = f"variants must name at least one variant of {self.environment}, got none."
            raise InvalidInputError(message + " Evaluate without variants for the nominal scene.")
        if self.variants and (self.variant is not None or not self.closed_loop):
            raise InvalidInputError(
                "variants must be run as well as the nominal scene and with whole episodes, got another condition. "
                "Leave `variant` and `closed_loop` as they are."
            )
        if self.variants and self.episodes < 2:
            message = f"episodes must be at least 2 for an interval over episodes, got {self.episodes}."
            raise InvalidInputError(message + " Ask for more.")

    @cached_property
    def asked(self) -> tuple[str, ...]:
        """The tasks, each once."""
        known: Sequence[str] = ENVIRONMENTS.load(self.environment).TASKS
        asked = tuple(dict.fromkeys(known if self.tasks is None else self.tasks))
        if not asked:
            raise InvalidInputError("tasks must name at least one task, got none. Leave them out to ask all.")
        for task in asked:
            if task not in known:
                raise UnknownNameError("task", task, known)
        return asked

    @cached_property
    def described_variants(self) -> dict[str, str]:
        """What is different on each of the variants to run as well, by name, each once."""
        known = getattr(ENVIRONMENTS.load(self.environment), "VARIANTS", {})
        names = dict.fromkeys(name for given in self.variants for name in (known if given == ALL else [given]))
        return {name: known[name].description for name in names}

    @cached_property
    def early_stop(self) -> EarlyStop | None:
        """When the evaluation may end early; None where it may not."""
        from daptq.statistics.stopping import EarlyStop, looks

        if self.stop_margin is None:
            return None
        return EarlyStop(margin=self.stop_margin, looks=looks(self.episodes, len(self.asked)))

    @cached_property
    def baseline(self) -> str | None:
        """Label of the baseline; None without one."""
        return None if self.against is None else _name(self.against)

    @cached_property
    def sources(self) -> dict[str, PolicySource]:
        """Every policy by its label, the baseline first; policies with the same name are numbered."""
        given = self.candidates
        named = given.items() if isinstance(given, Mapping) else [(_name(one), one) for one in given]
        sources: dict[str, PolicySource] = {}
        if self.against is not None:
            sources[_name(self.against)] = self.against
        for name, source in named:
            label, copies = name, 1
            while label in sources:
                copies += 1
                label = f"{name} ({copies})"
            sources[label] = source
        return sources

    @property
    def compared(self) -> list[str]:
        """Labels of the candidates."""
        return [label for label in self.sources if label != self.baseline]

    def conditions(self) -> dict[str | None, Evaluation]:
        """One request for each condition, by variant: the nominal scene (None) first, then every variant."""
        found: dict[str | None, Evaluation] = {}
        for variant in (None, *self.described_variants):
            journal = None if self.journal is None else self.journal / f"{variant or 'nominal'}.jsonl"
            states = self.drift_states if variant is None else 0
            found[variant] = replace(self, variants=(), variant=variant, drift_states=states, journal=journal)
        return found


def _name(source: PolicySource) -> str:
    """The label of a policy that was given none."""
    return str(source) if isinstance(source, str | Path) else source.name
