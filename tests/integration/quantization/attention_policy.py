"""A small policy whose action head attends to a prefix of padded tokens: two interfaces, keys and values."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from daptq.action_space import END_EFFECTOR_DELTA
from daptq.interfaces.contract import Interface, Tap
from daptq.interfaces.into_attention_keys import IntoAttentionKeys
from daptq.interfaces.into_attention_values import IntoAttentionValues
from daptq.observations import ACTION, STATE, TASK
from daptq.policies.contract import Batch, Block, Condition, DenoisingStep, Prediction
from tests.golden.interfaces.fold_cases import Attention
from tests.integration.quantization.plain_policy import PlainPolicy

TOKENS, HEADS, KV_HEADS, SIZE = 12, 4, 2, 6
WIDTH = 10


class AttentionPolicy(PlainPolicy):
    """State -> tokens -> keys and values of the prefix; two action tokens attend to them and to themselves.

    The second half of the tokens is padding in every other state of a batch.
    """

    family: ClassVar[str] = "attention"

    def __init__(self) -> None:
        super().__init__()
        self.name, self.action_space, self.chunk_size, self.n_action_steps = "attention", END_EFFECTOR_DELTA, 2, 2
        self.cameras, self.state_dim = {}, 7
        self.denoising_steps, self.denoising_step = 2, DenoisingStep()
        self.tokens = nn.Linear(7, TOKENS * 8)
        self.prefix_k, self.prefix_v = nn.Linear(8, KV_HEADS * SIZE), nn.Linear(8, KV_HEADS * SIZE)
        self.embed, self.out = nn.Linear(7, WIDTH), nn.Linear(WIDTH, 7)
        self.expert = Attention(HEADS, KV_HEADS, SIZE, bias=False)

    @classmethod
    def tiny(cls, seed: int = 0) -> Self:
        torch.manual_seed(seed)
        policy = cls()
        for layer in (policy.prefix_k, policy.prefix_v, policy.expert.q, policy.expert.o):
            layer.weight.data *= 2
        return policy.eval()

    def blocks(self) -> tuple[Block, ...]:
        language = [Block(name=name, role="language") for name in ("tokens", "prefix_k", "prefix_v")]
        return (*language, *(Block(name=name, role="action_head") for name in ("embed", "expert", "out")))

    def head_stack(self) -> tuple[str, ...]:
        return ("expert",)

    def interfaces(self) -> tuple[Interface, ...]:
        keys = IntoAttentionKeys("expert.q", "expert.k", HEADS, KV_HEADS)
        values = IntoAttentionValues("expert.o", "expert.v", HEADS, KV_HEADS)
        return (
            Interface("keys", Tap("prefix_k", "output"), (keys,)),
            Interface("values", Tap("prefix_v", "output"), (values,)),
        )

    def interface_mask(self, name: str, batch: Batch) -> Tensor:
        mask = torch.ones(len(batch[STATE]), TOKENS, dtype=torch.bool)
        mask[1::2, TOKENS // 2 :] = False
        return mask

    def condition(self, batch: Batch) -> Condition:
        tokens = torch.tanh(self.tokens(batch[STATE])).unflatten(1, (TOKENS, 8))
        return self.prefix_k(tokens), self.prefix_v(tokens)

    def head(self, keys: Tensor, values: Tensor, noisy: Tensor) -> Tensor:
        hidden = self.embed(noisy)
        return self.out(hidden + self.expert(hidden, keys, values))

    def denoise(self, condition: Condition, noise: Tensor) -> Tensor:
        keys, values = condition
        chunk = noise
        for step in range(self.denoising_steps):
            self.denoising_step.index = step
            chunk = chunk - 0.5 * self.head(keys, values, chunk)
        return chunk

    def predict_target(self, batch: Batch, generator: torch.Generator) -> Prediction:
        noise = torch.randn(batch[ACTION].shape, generator=generator)
        keys, values = self.condition(batch)
        predicted = self.head(keys, values, batch[ACTION] + noise)
        return Prediction(predicted=predicted, target=noise - batch[ACTION], kind="velocity")

    def example_batch(self, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        return {
            STATE: torch.randn(6, 7, generator=generator),
            TASK: ["move"] * 6,
            ACTION: 0.1 * torch.randn(6, 2, 7, generator=generator),
        }
