"""The suite notices a policy whose parts, noise, loop, idle layers or stack are not what the contract says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from daptq.errors import CheckFailedError
from daptq.interfaces.contract import Interface
from daptq.observations import ACTION, STATE
from daptq.policies.conformance import check_policy
from daptq.policies.contract import Batch, Block, Condition, Prediction
from tests.integration.quantization.conftest import ChainPolicy


class Deterministic(ChainPolicy):
    """A chain that predicts the action itself and draws no noise."""

    deterministic = True

    def denoise(self, condition: Condition, noise: Tensor) -> Tensor:
        (representation,) = condition
        assert noise.shape == (len(representation), 0)
        return self.head(representation, torch.zeros(len(representation), 2, 7))

    def predict_target(self, batch: Batch, generator: torch.Generator) -> Prediction:
        predicted = self.denoise(self.condition(batch), self.noise(len(batch[STATE]), generator))
        return Prediction(predicted=predicted, target=batch[ACTION] / self.action_unit, kind="action")


class WithSpare(ChainPolicy):
    """A chain with a layer that runs although nothing reads it, declared or not."""

    declared: tuple[str, ...] = ("spare",)

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(10, 4)

    def blocks(self) -> tuple[Block, ...]:
        return (*super().blocks(), Block(name="spare", role="action_head"))

    def idle_layers(self) -> tuple[str, ...]:
        return self.declared

    def denoise(self, condition: Condition, noise: Tensor) -> Tensor:
        self.spare(condition[0])
        return super().denoise(condition, noise)


class Dead(ChainPolicy):
    """The gradient of a layer is exactly zero: its activations are dead at the example's states, not for good."""

    def __init__(self) -> None:
        super().__init__()
        self.dead = nn.Linear(10, 12)
        nn.init.constant_(self.dead.bias, -100.0)

    def blocks(self) -> tuple[Block, ...]:
        return (*super().blocks(), Block(name="dead", role="action_head"))

    def interfaces(self) -> tuple[Interface, ...]:
        return ()

    def head(self, representation: Tensor, noisy: Tensor) -> Tensor:
        added = torch.relu(self.dead(representation)).sum(dim=1)
        return super().head(representation, noisy) + added[:, None, None]


@pytest.mark.parametrize("kind", [ChainPolicy, Deterministic, WithSpare, Dead])
def test_such_policies_keep_the_contract(kind: type[ChainPolicy]) -> None:
    check_policy(kind.tiny())


class _FixedBlocks(ChainPolicy):
    """A chain whose blocks do not follow from its stack."""

    def blocks(self) -> tuple[Block, ...]:
        head = ("consumer", "embed", "stack.0", "stack.1", "stack.2", "out")
        return Block(name="language", role="language"), *(Block(name=name, role="action_head") for name in head)


class _StackElsewhere(_FixedBlocks):
    def head_stack(self) -> tuple[str, ...]:
        return ("nowhere",)


class _StackOfTheLanguageModel(_FixedBlocks):
    def head_stack(self) -> tuple[str, ...]:
        return ("language", "stack.0")


class _StackBackwards(_FixedBlocks):
    def head_stack(self) -> tuple[str, ...]:
        return ("stack.1", "stack.0")


class _IdleElsewhere(WithSpare):
    declared = ("spare", "nowhere")


class _IdleInterface(WithSpare):
    declared = ("spare", "consumer")


class _IdleButRead(WithSpare):
    declared = ("spare", "stack.1")


class _IdleUndeclared(WithSpare):
    declared = ()


class _IdleButReadDetached(WithSpare):
    def head(self, representation: Tensor, noisy: Tensor) -> Tensor:
        read = self.spare(representation).detach().sum(dim=1)
        return super().head(representation, noisy) + read[:, None, None]


class _IdleButItsBiasIsRead(WithSpare):
    def head(self, representation: Tensor, noisy: Tensor) -> Tensor:
        return super().head(representation, noisy) + self.spare.bias.detach().sum()


class _OneOfTwoIdleIsRead(_IdleButReadDetached):
    declared = ("other", "spare")

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(10, 4)

    def blocks(self) -> tuple[Block, ...]:
        return (*super().blocks(), Block(name="other", role="action_head"))

    def head(self, representation: Tensor, noisy: Tensor) -> Tensor:
        self.other(representation)
        return super().head(representation, noisy)


class _DeadUndeclared(WithSpare):
    declared = ()

    def head(self, representation: Tensor, noisy: Tensor) -> Tensor:
        dead = 0 * self.spare(representation).sum(dim=1)
        return super().head(representation, noisy) + dead[:, None, None]


class _LeavesALayerOutOfTheLoss(WithSpare):
    declared = ()

    def denoise(self, condition: Condition, noise: Tensor) -> Tensor:
        return super().denoise(condition, noise) + self.spare(condition[0]).sum(dim=1)[:, None, None]

    def predict_target(self, batch: Batch, generator: torch.Generator) -> Prediction:
        answer = super().predict_target(batch, generator)
        dead = 0 * self.spare(self.language(batch[STATE])).sum()
        return Prediction(predicted=answer.predicted + dead, target=answer.target, kind="noise")


class _OneNoiseForAll(ChainPolicy):
    def noise(self, count: int, generator: object) -> Tensor:
        first = generator if isinstance(generator, torch.Generator) else generator[0]  # type: ignore[index]
        return super().noise(count, first)


class _RemembersTheObservation(ChainPolicy):
    def condition(self, batch: Batch) -> Condition:
        self.remembered = self.language(batch[STATE])
        return (self.remembered,)

    def denoise(self, condition: Condition, noise: Tensor) -> Tensor:
        return self.head(self.remembered, noise)


class _IgnoresTheLoop(ChainPolicy):
    def predict_chunk(self, batch: Batch, generator: object) -> Tensor:
        noise = self.noise(len(batch[STATE]), generator)  # type: ignore[arg-type]
        return self.executed(self.denoise(self.condition(batch), noise), batch)


class _IgnoresWhatTheLoopAnswers(ChainPolicy):
    def predict_chunk(self, batch: Batch, generator: object) -> Tensor:
        condition, noise = self.condition(batch), self.noise(len(batch[STATE]), generator)  # type: ignore[arg-type]
        self.loop(condition, noise)
        return self.executed(self.denoise(condition, noise), batch)


class _DeterministicByName(ChainPolicy):
    deterministic = True

    def noise(self, count: int, generator: object) -> Tensor:
        return torch.randn(count, 2, 7, generator=generator if isinstance(generator, torch.Generator) else None)


class _DeterministicInTwoSteps(Deterministic):
    def __init__(self) -> None:
        super().__init__()
        self.denoising_steps = 2


class _AnotherKind(ChainPolicy):
    def predict_target(self, batch: Batch, generator: torch.Generator) -> Prediction:
        answer = super().predict_target(batch, generator)
        return Prediction(predicted=answer.predicted, target=answer.target, kind="colour")  # type: ignore[arg-type]


class _TargetOfAnotherShape(ChainPolicy):
    def predict_target(self, batch: Batch, generator: torch.Generator) -> Prediction:
        answer = super().predict_target(batch, generator)
        return Prediction(predicted=answer.predicted, target=answer.target[:, :1], kind="noise")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (_StackElsewhere, "'nowhere' of the action head's stack must hold linear layers"),
        (_StackOfTheLanguageModel, "'language' of the action head's stack must be of the action head"),
        (_StackBackwards, "in execution order"),
        (_IdleElsewhere, "idle layer 'nowhere' must be a linear layer"),
        (_IdleInterface, "interface layer 'consumer' must not be idle"),
        (_IdleButRead, r"must not depend on idle layer 'stack\.1'"),
        (_IdleUndeclared, "must depend on layer 'spare', got no gradient"),
        (_IdleButReadDetached, "must not depend on idle layer 'spare', got another chunk with other weights"),
        (_IdleButItsBiasIsRead, "must not depend on idle layer 'spare', got another chunk with other weights"),
        (_OneOfTwoIdleIsRead, "must not depend on idle layer 'spare', got another chunk with other weights"),
        (_DeadUndeclared, "must depend on layer 'spare', got the same answer with other weights"),
        (_LeavesALayerOutOfTheLoss, "the loss must reach action-head layer 'spare', got the same answer"),
        (_OneNoiseForAll, "depend on its own generator alone"),
        (_RemembersTheObservation, "denoise must depend on the condition and the noise"),
        (_IgnoresTheLoop, "must run once for a chunk, got 0 times"),
        (_IgnoresWhatTheLoopAnswers, "must be what is executed"),
        (_DeterministicByName, "must give the same chunk of a deterministic policy"),
        (_DeterministicInTwoSteps, "must have one denoising step"),
        (_AnotherKind, "kind of the prediction must be one of"),
        (_TargetOfAnotherShape, "the target of the prediction must have shape"),
    ],
)
def test_the_suite_notices(broken: type[ChainPolicy], message: str) -> None:
    with pytest.raises(CheckFailedError, match=message):
        check_policy(broken.tiny())
