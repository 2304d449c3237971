"""Every family of the catalog keeps the contract, and the suite notices when one does not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from daptq.catalog import POLICIES
from daptq.errors import CheckFailedError
from daptq.policies.cogact_small import SmallCogACTPolicy
from daptq.policies.conformance import check_policy


@pytest.mark.parametrize("family", POLICIES.names())
def test_every_family_keeps_the_contract(family: str) -> None:
    module = POLICIES.load(family)
    policy = module.POLICY.tiny(seed=3)
    check_policy(policy)
    assert policy.family == family


class _ForgetsALayer(SmallCogACTPolicy):
    def blocks(self):  # type: ignore[no-untyped-def]
        return tuple(block for block in super().blocks() if block.name != "projector")


class _IgnoresTheGenerator(SmallCogACTPolicy):
    def predict_chunk(self, batch, generator):  # type: ignore[no-untyped-def]
        return super().predict_chunk(batch, torch.Generator().manual_seed(0))


class _IgnoresTheImage(SmallCogACTPolicy):
    def perceive(self, batch):  # type: ignore[no-untyped-def]
        return super().perceive(self.example_batch(0))


class _ListsADeadLayer(SmallCogACTPolicy):
    def linear_layers(self):  # type: ignore[no-untyped-def]
        return {**super().linear_layers(), "action_model.net.history_embedder.linear": "action_head"}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (_ForgetsALayer, "must be part of a block"),
        (_IgnoresTheGenerator, "another generator state"),
        (_IgnoresTheImage, "another observation"),
        (_ListsADeadLayer, "must run when a chunk is predicted"),
    ],
)
def test_the_suite_notices(broken: type[SmallCogACTPolicy], message: str) -> None:
    healthy = SmallCogACTPolicy.tiny()
    policy = broken(healthy.settings, healthy.tokenizer)
    policy.load_state_dict(healthy.state_dict())
    with pytest.raises(CheckFailedError, match=message):
        check_policy(policy)


def test_the_suite_notices_weights_lost_in_rebuilding() -> None:
    policy = SmallCogACTPolicy.tiny()
    policy.extra = nn.Parameter(torch.ones(1))
    policy.from_config = lambda *_, **__: SmallCogACTPolicy.tiny(seed=9)  # type: ignore[method-assign]
    with pytest.raises((CheckFailedError, RuntimeError)):
        check_policy(policy)
