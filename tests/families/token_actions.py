"""A small policy that speaks its actions as tokens, built as OpenVLA is: for tests alone.

Picture tokens and a prompt enter a causal language model; one token for each of seven action dimensions is decoded
greedily from the last bins of the vocabulary. There is no noise: the policy is deterministic. What is differentiated is
the expected bin centre under the distribution of each token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from daptq.action_space import END_EFFECTOR_DELTA
from daptq.interfaces.contract import Interface, Tap
from daptq.interfaces.into_consumers import IntoConsumers
from daptq.interfaces.into_norm import IntoNorm
from daptq.observations import ACTION, TASK, CameraSize
from daptq.policies.contract import Batch, Block, DenoisingStep, Policy, Prediction

CAMERA = "observation.images.primary"
PICTURE, PATCH, WIDTH, DEPTH, HEADS = CameraSize(16, 16), 8, 32, 2, 4
WORDS, BINS = 30, 17  # 16 bins have centres


class Layer(nn.Module):
    """Causal attention and a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH, bias=False), nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        answered: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return answered


class TokenActionPolicy(Policy):
    """See the module."""

    family: ClassVar[str] = "token-actions"
    centres: Tensor
    half_range: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.name, self.chunk_size, self.n_action_steps = "token-actions", 1, 1
        self.action_space, self.cameras, self.state_dim = END_EFFECTOR_DELTA, {CAMERA: PICTURE}, None
        self.deterministic, self.denoising_steps, self.denoising_step = True, 1, DenoisingStep()
        self.patches = nn.Linear(3 * PATCH * PATCH, WIDTH)
        self.projector = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.words = nn.Embedding(WORDS + BINS - 1, WIDTH)
        self.positions = nn.Parameter(0.5 * torch.randn(64, WIDTH))
        self.language = nn.ModuleList([Layer() for _ in range(DEPTH)])
        self.norm = nn.RMSNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, WORDS + BINS - 1, bias=False)
        self._constants()
        self.eval()

    def _constants(self) -> None:
        edges = torch.linspace(-1, 1, BINS)
        self.register_buffer("centres", (edges[1:] + edges[:-1]) / 2, persistent=False)
        self.register_buffer("half_range", torch.tensor([0.02, 0.02, 0.02, 0.1, 0.1, 0.1, 1.0]), persistent=False)

    @classmethod
    def tiny(cls, seed: int = 0) -> Self:
        torch.manual_seed(seed)
        policy = cls()
        for name, parameter in policy.named_parameters():
            if parameter.dim() == 2 and name.endswith("weight"):
                nn.init.normal_(parameter, std=(3.0 if "lm_head" in name else 0.8) / math.sqrt(parameter.shape[1]))
        return policy

    @classmethod
    def from_config(cls, config: Mapping[str, Any], files: Mapping[str, bytes], *, empty: bool = False) -> Self:
        with torch.device("meta" if empty else "cpu"):
            policy = cls()
        policy._constants()
        return policy

    def config(self) -> dict[str, Any]:
        return {}

    def files(self) -> dict[str, bytes]:
        return {}

    def blocks(self) -> tuple[Block, ...]:
        return (
            Block(name="patches", role="vision"),
            Block(name="projector", role="connector"),
            *(Block(name=f"language.{i}", role="language") for i in range(DEPTH)),
            Block(name="lm_head", role="action_head"),
        )

    def head_stack(self) -> tuple[str, ...]:
        return ()

    def interfaces(self) -> tuple[Interface, ...]:
        folds = (IntoConsumers(consumers=("lm_head",)), IntoNorm(norm="norm"))
        return (Interface(name="lm_head", tap=Tap(module="lm_head"), folds=folds),)

    def condition(self, batch: Batch) -> tuple[Tensor, ...]:
        """Embedded pictures and prompt (b, rows, width); prompts of one length."""
        picture = batch[CAMERA].unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
        tokens = self.projector(self.patches(picture.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)))
        ids = torch.tensor([[sum(map(ord, word)) % WORDS for word in text.split()] for text in batch[TASK]])
        return (torch.cat([tokens, self.words(ids)], dim=1),)

    def _logits(self, prefix: Tensor, spoken: Tensor) -> Tensor:
        """Logits of the bins (b, 7, 16) after the prefix and all but the last of seven spoken tokens (b, 7)."""
        x = torch.cat([prefix, self.words(WORDS + spoken[:, :-1])], dim=1)
        x = x + self.positions[: x.shape[1]]
        for layer in self.language:
            x = layer(x)
        logits: Tensor = self.lm_head(self.norm(x[:, -self.action_dim :]))[..., WORDS:]
        return logits

    def _spoken(self, prefix: Tensor) -> Tensor:
        """Bins (b, 7) that greedy decoding speaks."""
        spoken = torch.zeros(len(prefix), self.action_dim, dtype=torch.long)
        with torch.no_grad():
            for i in range(self.action_dim):
                spoken[:, i] = self._logits(prefix, spoken)[:, i].argmax(-1)
        return spoken

    def _expected(self, prefix: Tensor, spoken: Tensor) -> Tensor:
        """Expected bin centre (b, 1, 7)."""
        return (self._logits(prefix, spoken).softmax(-1) @ self.centres).unsqueeze(1)

    def denoise(self, condition: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        """The centres of the bins that greedy decoding speaks, with the gradient of the expected centres."""
        (prefix,) = condition
        spoken = self._spoken(prefix)
        expected = self._expected(prefix, spoken)
        return expected + (self.centres[spoken].unsqueeze(1) - expected).detach()

    def executed(self, chunk: Tensor, batch: Batch) -> Tensor:
        return chunk * self.half_range

    def unlimited(self, chunk: Tensor, batch: Batch) -> Tensor:
        return chunk * self.half_range

    @property
    def action_unit(self) -> Tensor:
        return self.half_range

    def predict_target(self, batch: Batch, generator: torch.Generator) -> Prediction:
        target = (batch[ACTION] / self.half_range).clamp(-1, 1)
        spoken = torch.bucketize(target[:, 0].contiguous(), torch.linspace(-1, 1, BINS)[1:-1])
        return Prediction(predicted=self._expected(self.condition(batch)[0], spoken), target=target, kind="action")

    def example_batch(self, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        return {
            CAMERA: torch.rand(2, 3, *PICTURE, generator=generator),
            TASK: ["pick up the red cube", "open the upper left drawer"],
            ACTION: self.half_range * (2 * torch.rand(2, 1, 7, generator=generator) - 1),
        }


POLICY = TokenActionPolicy
