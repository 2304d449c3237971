"""A calibration source held in memory, and a small policy whose producer's output is the representation itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import Self

from daptq.action_space import END_EFFECTOR_DELTA
from daptq.calibration.contract import CalibrationSource
from daptq.catalog import POLICIES
from daptq.interfaces.contract import Interface, Tap
from daptq.interfaces.into_consumers import IntoConsumers
from daptq.interfaces.into_producer import IntoProducer
from daptq.observations import ACTION, STATE, TASK
from daptq.policies.cogact_small import SmallCogACTPolicy
from daptq.policies.contract import Batch, Block, Condition, DenoisingStep, Policy, Prediction
from tests.integration.quantization.plain_policy import PlainPolicy


class HeldBatches(CalibrationSource):
    """Batches that a policy makes up."""

    licence, description = "CC0-1.0", "made-up states"

    def __init__(self, policy: Policy, count: int) -> None:
        self.batches = [policy.example_batch(seed) for seed in range(count)]
        self.hash = f"{policy.family}-{count}"

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


class ChainPolicy(PlainPolicy):
    """State -> language -> representation -> consumer -> head, all linear layers with tanh between them."""

    family: ClassVar[str] = "chain"

    def __init__(self) -> None:
        super().__init__()
        self.name, self.action_space, self.chunk_size = "chain", END_EFFECTOR_DELTA, 2
        self.n_action_steps, self.cameras, self.state_dim = 2, {}, 5
        self.denoising_steps, self.denoising_step = 1, DenoisingStep()
        self.language = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 10))
        self.consumer = nn.Linear(10, 12)
        self.stack = nn.ModuleList([nn.Linear(12, 12) for _ in range(3)])
        self.embed, self.out = nn.Linear(14, 12), nn.Linear(12, 14)
        self.null = nn.Parameter(torch.zeros(1, 10))

    @classmethod
    def tiny(cls, seed: int = 0) -> Self:
        torch.manual_seed(seed)
        return cls().eval()

    def blocks(self) -> tuple[Block, ...]:
        head = ("consumer", "embed", *self.head_stack(), "out")
        roles = [("language", "language"), *((name, "action_head") for name in head)]
        return tuple(Block(name=name, role=role) for name, role in roles)  # type: ignore[arg-type]

    def interfaces(self) -> tuple[Interface, ...]:
        folds = (IntoConsumers(("consumer",), ("null",)), IntoProducer("language.2"))
        return (Interface("consumer", Tap("consumer"), folds),)

    def head_stack(self) -> tuple[str, ...]:
        return tuple(f"stack.{i}" for i in range(3))

    def head(self, representation: Tensor, noisy: Tensor) -> Tensor:
        hidden: Tensor = self.consumer(representation) + self.consumer(self.null) + self.embed(noisy.flatten(1))
        for block in self.stack:
            hidden = hidden + torch.tanh(block(hidden))
        predicted: Tensor = self.out(hidden)
        return predicted.view(noisy.shape)

    def predict_target(self, batch: Batch, generator: torch.Generator) -> Prediction:
        noise = torch.randn(batch[ACTION].shape, generator=generator)
        predicted = self.head(self.language(batch[STATE]), batch[ACTION] + noise)
        return Prediction(predicted=predicted, target=noise, kind="noise")

    def condition(self, batch: Batch) -> Condition:
        return (self.language(batch[STATE]),)

    def denoise(self, condition: Condition, noise: Tensor) -> Tensor:
        return self.head(condition[0], noise)

    def example_batch(self, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        return {
            STATE: 2 + torch.randn(8, 5, generator=generator),
            TASK: ["move"] * 8,
            ACTION: 0.1 * torch.randn(8, 2, 7, generator=generator),
        }


@pytest.fixture
def in_catalog(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Policy]], None]:
    """Puts a family under its own name into the catalog."""

    def put(family: type[Policy]) -> None:
        load, module = POLICIES.load, SimpleNamespace(POLICY=family)
        monkeypatch.setattr(POLICIES, "load", lambda name: module if name == family.family else load(name))

    return put


@pytest.fixture
def chain() -> ChainPolicy:
    torch.manual_seed(5)
    policy = ChainPolicy()
    nn.init.normal_(policy.null)
    return policy.eval()


@pytest.fixture(scope="session")
def cogact() -> SmallCogACTPolicy:
    return SmallCogACTPolicy.tiny()


@pytest.fixture(scope="session")
def held() -> Callable[[Policy, int], HeldBatches]:
    return HeldBatches
