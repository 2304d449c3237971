"""What a worker process needs to do the jobs of an evaluation: environments and policies, made when first asked for.

Every process builds as many environments as the largest job asks for, loads each policy once, and computes with one
thread, so a record does not depend on which process made it, nor on how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from daptq.catalog import ENVIRONMENTS
from daptq.closed_loop.compatibility import require_compatible
from daptq.closed_loop.rollout import Record
from daptq.environments.contract import Environment
from daptq.errors import DaptqError, InvalidInputError
from daptq.evaluation.jobs import Job
from daptq.monitoring.interface_reference import InterfaceReference
from daptq.observations import CameraSize, ImageSizes
from daptq.packing.checkpoint import load_policy
from daptq.policies.contract import Policy

PolicySource = str | Path | Policy


@dataclass(kw_only=True)
class WorkerContext:
    """What one process needs to run jobs; built when the first job asks for it.

    Attributes:
        environment_name: Name of the environment in the catalog.
        image_size: Size of each camera's pictures, by its full key; None for the environment's own size.
        sources: Name, folder or loaded policy, by label.
        variant: Variant of the environment; None for the nominal scene.
        references: What is normal at the interface of policies whose episodes are watched, by label.
        loaded: Policies that this process has loaded, by label.
    """

    environment_name: str
    image_size: ImageSizes
    sources: Mapping[str, PolicySource]
    variant: str | None = None
    references: Mapping[str, InterfaceReference] | None = None
    loaded: dict[str, Policy] = field(default_factory=dict)
    _environments: list[Environment] = field(default_factory=list)

    def environments(self, count: int) -> Sequence[Environment]:
        """The first `count` environments of this process."""
        while len(self._environments) < count:
            module = ENVIRONMENTS.load(self.environment_name)
            chosen = {} if self.variant is None else {"variant": self.variant}
            self._environments.append(module.make(image_size=dict(self.image_size), **chosen))
        return self._environments[:count]

    def environment_of(self, policies: Mapping[str, Policy]) -> Environment:
        """The first environment of this process, which all of these policies can act in.

        Args:
            policies: The policies, by label.

        Raises:
            InvalidInputError: One cannot, see `daptq.closed_loop.compatibility`; the environments are closed.
        """
        (first,) = self.environments(1)
        try:
            require_compatible(policies, first, self.environment_name)
        except InvalidInputError:
            self.close()
            raise
        return first

    def policy(self, label: str) -> Policy:
        """The policy called `label`."""
        if label not in self.loaded:
            self.loaded[label] = open_policy(self.sources[label])
        return self.loaded[label]

    def run(self, job: Job) -> Sequence[Record]:
        """Does one job.

        Raises:
            DaptqError: Anything went wrong in the environment or the policy; the message says in which episode.
        """
        environments, policy = self.environments(len(job)), self.policy(job.policy)
        try:
            return job.run(environments, policy, (self.references or {}).get(job.policy))
        except Exception as error:
            raise DaptqError(f"{job} must run to its end, got {type(error).__name__}: {error}") from error

    def answer(self, job: Job) -> Sequence[Record] | Exception:
        """Does one job for another process; what went wrong is sent to it, too."""
        try:
            return self.run(job)
        except Exception as error:  # noqa: BLE001
            return error

    def for_another_process(self) -> WorkerContext:
        """The same without what belongs to this process."""
        return replace(self, loaded={}, _environments=[])

    def close(self) -> None:
        """Closes the environments that were built."""
        while self._environments:
            self._environments.pop().close()


def open_policy(source: PolicySource) -> Policy:
    """Loads a policy by name or folder, ready to act; a loaded one is returned as it is."""
    policy = source if isinstance(source, Policy) else load_policy(source)
    return policy.eval()


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch compute with one thread inside, as every worker does, so that sums are taken in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def picture_sizes(policies: Mapping[str, Policy]) -> dict[str, CameraSize | None]:
    """Size [px] of the pictures of each camera that at least one policy looks through; None where any size will do.

    Raises:
        InvalidInputError: Two policies look at pictures of different sizes through the same camera.
    """
    sizes: dict[str, CameraSize | None] = {}
    for label, policy in policies.items():
        for camera, size in policy.cameras.items():
            known = sizes.get(camera)
            if known is not None and size is not None and known != size:
                message = f"pictures of camera {camera!r} must have one size, got {tuple(known)} and {tuple(size)}"
                raise InvalidInputError(f"{message} ({label}). Evaluate these policies separately.")
            sizes[camera] = size if known is None else known
    return sizes
