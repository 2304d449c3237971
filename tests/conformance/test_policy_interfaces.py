"""The suite of families notices folds that do not belong to their tap, and lets sound interfaces of every form pass."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from daptq.errors import CheckFailedError
from daptq.interfaces.contract import Fold, Interface, Tap
from daptq.interfaces.into_attention_keys import IntoAttentionKeys
from daptq.interfaces.into_attention_values import IntoAttentionValues
from daptq.interfaces.into_consumers import IntoConsumers
from daptq.interfaces.into_producer import IntoProducer
from daptq.observations import STATE
from daptq.policies.conformance import check_policy
from daptq.policies.contract import Batch, Block, Condition, Policy
from tests.families.joint_flow import JointFlowPolicy
from tests.integration.quantization.attention_policy import AttentionPolicy
from tests.integration.quantization.conftest import ChainPolicy

PRODUCER = IntoProducer("language.2")


class Branched(ChainPolicy):
    """Two layers read the representation, by position and by name, and a third one reads it bent."""

    folds: ClassVar[tuple[Fold, ...]] = (IntoConsumers(("consumer", "second"), ("null",)), PRODUCER)
    tap: ClassVar[Tap] = Tap("consumer")

    def __init__(self) -> None:
        super().__init__()
        self.second, self.bent = nn.Linear(10, 12, bias=False), nn.Linear(10, 12)
        self.seen, self.unread, self.unused = nn.Identity(), nn.Identity(), nn.Identity()

    def blocks(self) -> tuple[Block, ...]:
        return (*super().blocks(), *(Block(name=name, role="action_head") for name in ("second", "bent")))

    def interfaces(self) -> tuple[Interface, ...]:
        return (Interface("one", self.tap, self.folds),)

    def beside(self, representation: Tensor) -> Tensor:
        """What reads the representation beside the consumer."""
        second = self.second(input=representation.unsqueeze(1)).squeeze(1)
        hidden: Tensor = second + self.bent(torch.tanh(representation))
        return hidden

    def head(self, representation: Tensor, noisy: Tensor) -> Tensor:
        self.unused(representation)
        hidden = self.beside(representation) + self.consumer(representation) + self.consumer(self.null)
        hidden = hidden + self.embed(noisy.flatten(1))
        for block in self.stack:
            hidden = hidden + torch.tanh(block(hidden))
        predicted: Tensor = self.out(hidden)
        return predicted.view(noisy.shape)


class ReadsElsewhere(Branched):
    """The bent layer reads a part of the hidden state."""

    def beside(self, representation: Tensor) -> Tensor:
        hidden: Tensor = self.second(input=representation)
        return hidden + self.bent(torch.tanh(hidden[:, :10]))


class FromOutput(ReadsElsewhere):
    """The tap is what the language model writes; it is passed before the action head runs."""

    tap = Tap("language", "output")


class FromSeen(ReadsElsewhere):
    """The tap is a module around the representation, which others read behind it."""

    tap = Tap("seen")

    def condition(self, batch: Batch) -> Condition:
        return (self.seen(super().condition(batch)[0]),)


class FromSeenInTheHead(ReadsElsewhere):
    """The same within the action head; one reader takes the representation from before that module."""

    tap = Tap("seen")

    def head(self, representation: Tensor, noisy: Tensor) -> Tensor:
        self.before = representation
        return super().head(self.seen(representation), noisy)

    def beside(self, representation: Tensor) -> Tensor:
        return super().beside(self.before)


class ByName(ReadsElsewhere):
    """The tap is the layer whose input is given by name."""

    tap = Tap("second")


class ByHeads(AttentionPolicy):
    """The taps are keys and values split into heads."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = nn.ModuleList([nn.Identity(), nn.Identity()])

    def interfaces(self) -> tuple[Interface, ...]:
        sides: tuple[Any, Any] = ("input", "output")
        return tuple(
            Interface(one.name, Tap(f"kept.{i}", sides[i], heads=2), one.folds)
            for i, one in enumerate(super().interfaces())
        )

    def condition(self, batch: Batch) -> Condition:
        tensors = super().condition(batch)
        heads = [one.unflatten(2, (2, -1)).transpose(1, 2) for one in tensors]
        return tuple(kept(one).transpose(1, 2).flatten(2) for kept, one in zip(self.kept, heads, strict=True))


class WithoutInterface(ChainPolicy):
    def interfaces(self) -> tuple[Interface, ...]:
        return ()


@pytest.mark.parametrize(
    "kind", [ReadsElsewhere, FromOutput, FromSeen, FromSeenInTheHead, ByName, ByHeads, WithoutInterface]
)
def test_sound_interfaces_keep_the_contract(kind: type[Policy]) -> None:
    check_policy(kind.tiny())


class _LeavesOutAConsumer(ReadsElsewhere):
    folds = (IntoConsumers(("consumer",), ("null",)),)


class _LeavesOutAConsumerByName(ByName):
    folds = (IntoConsumers(("second",)),)


class _LeavesOutAConsumerOfAnOutput(FromOutput):
    folds = (IntoConsumers(("consumer",), ("null",)),)


class _FoldsIntoAnotherLayer(ReadsElsewhere):
    folds = (IntoConsumers(("consumer", "bent"), ("null",)),)


class _FoldsIntoALayerOfAnotherSize(ReadsElsewhere):
    folds = (IntoConsumers(("consumer", "second", "embed"), ("null",)),)


class _FoldsIntoAnotherProducer(ReadsElsewhere):
    folds = (IntoProducer("consumer"),)


class _LeavesOutTheConstant(ReadsElsewhere):
    folds = (IntoConsumers(("consumer", "second")),)


class _TapsAnotherLayer(ReadsElsewhere):
    tap = Tap("bent")


class _TapsAnotherSide(ReadsElsewhere):
    tap = Tap("consumer", "output")


class _TapsWhatIsNotRun(ReadsElsewhere):
    tap = Tap("unread")


class _TapsWhatIsNotUsed(ReadsElsewhere):
    folds = (PRODUCER,)
    tap = Tap("unused", "output")


class _ProducerIsReadElsewhere(Branched):
    """The bent layer reads what the producer writes, and no map of what linear layers read reaches it."""

    folds = (PRODUCER,)


class _MasksOtherRows(ReadsElsewhere):
    def interface_mask(self, name: str, batch: Batch) -> Tensor:
        return torch.ones(len(batch[STATE]), 2, dtype=torch.bool)


class _SplitsIntoOtherHeads(ByHeads):
    def interfaces(self) -> tuple[Interface, ...]:
        return tuple(Interface(one.name, Tap(one.tap.module, heads=3), one.folds) for one in super().interfaces())


class _SwapsKeysAndValues(AttentionPolicy):
    def interfaces(self) -> tuple[Interface, ...]:
        keys, values = super().interfaces()
        return Interface("keys", values.tap, keys.folds), Interface("values", keys.tap, values.folds)


class _OtherCounterpart(AttentionPolicy):
    def interfaces(self) -> tuple[Interface, ...]:
        keys, values = super().interfaces()
        return keys, Interface("values", values.tap, (IntoAttentionValues("expert.o", "expert.k", 4, 2),))


class _OtherGroups(AttentionPolicy):
    def interfaces(self) -> tuple[Interface, ...]:
        return (Interface("keys", Tap("prefix_k", "output"), (IntoAttentionKeys("expert.q", "expert.k", 2, 1),)),)


class _OtherHeads(AttentionPolicy):
    def interfaces(self) -> tuple[Interface, ...]:
        return (Interface("keys", Tap("prefix_k", "output"), (IntoAttentionKeys("expert.q", "expert.k", 3, 1),)),)


def joint(kind: str, fold: Fold) -> type[JointFlowPolicy]:
    """A family with this fold at the keys or values of the first layer of the language model."""

    class Joint(JointFlowPolicy):
        def interfaces(self) -> tuple[Interface, ...]:
            tap = Tap(f"language.0.attention.{kind}_proj", "output")
            return (Interface("first", tap, (fold,)), *super().interfaces()[2:])

    return Joint


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (_LeavesOutAConsumer, "'into-consumers' of interface 'one' must answer as a map"),
        (_LeavesOutAConsumerByName, "'into-consumers' of interface 'one' must answer as a map"),
        (_LeavesOutAConsumerOfAnOutput, "'into-consumers' of interface 'one' must answer as a map"),
        (_FoldsIntoAnotherLayer, "'into-consumers' of interface 'one' must answer as a map"),
        (_FoldsIntoALayerOfAnotherSize, "must take a map of what passes the tap: map must have the 14 channels"),
        (_FoldsIntoAnotherProducer, "must take a map of what passes the tap: map must have the 12 channels"),
        (_LeavesOutTheConstant, "'into-consumers' of interface 'one' must answer as a map"),
        (_TapsAnotherLayer, "'into-consumers' of interface 'one' must answer as a map"),
        (_TapsAnotherSide, "must take a map of what passes the tap: map must have the 10 channels"),
        (_TapsWhatIsNotRun, "something must pass the tap of interface 'one'"),
        (_TapsWhatIsNotUsed, "a map of interface 'one' must move the prediction, moved 0"),
        (_ProducerIsReadElsewhere, "'into-producer' of interface 'one' must answer as a map"),
        (_MasksOtherRows, r"interface_mask must be a boolean tensor \(8, 1\)"),
        (_SplitsIntoOtherHeads, r"what the interfaces say: what passes kept.0 must have shape \(batch, 3"),
        (_SwapsKeysAndValues, "'into-attention-keys' of interface 'keys' must answer as a map"),
        (_OtherCounterpart, "'into-attention-values' of interface 'values' must answer as a map"),
        (_OtherGroups, "'into-attention-keys' of interface 'keys' must answer as a map"),
        (_OtherHeads, "of interface 'keys' must take a map of what passes the tap: .* 3 heads of the size"),
        (joint("k", IntoConsumers(("expert.0.down",))), "of interface 'first' must take a map"),
        (joint("k", IntoConsumers(("expert.1.attention.k_proj",))), "of interface 'first' must answer as a map"),
        (
            joint("k", IntoAttentionKeys("expert.2.attention.q_proj", "expert.2.attention.k_proj", 4, 2)),
            "of interface 'first' must answer as a map",
        ),
        (
            joint("k", IntoAttentionValues("expert.0.attention.o_proj", "expert.0.attention.v_proj", 4, 2)),
            "of interface 'first' must answer as a map",
        ),
        (
            joint("v", IntoAttentionValues("expert.0.attention.o_proj", "expert.2.attention.v_proj", 4, 2)),
            "of interface 'first' must answer as a map",
        ),
    ],
)
def test_a_fold_that_belongs_elsewhere_is_found(broken: type[Policy], message: str) -> None:
    with pytest.raises(CheckFailedError, match=message):
        check_policy(broken.tiny())


def test_checking_changes_nothing() -> None:
    policy = ReadsElsewhere.tiny()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    check_policy(policy)
    assert {name: torch.equal(value, before[name]) for name, value in policy.state_dict().items()} == dict.fromkeys(
        before, True
    )
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in policy.modules())
