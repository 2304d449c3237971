"""A small flow-matching policy with joint attention, built as SmolVLA is: for tests alone.

A language model reads picture tokens and a padded prompt; an expert of the same depth reads its keys and values. In
even layers the expert attends to them beside its own (joint attention); in odd layers it reads nothing but them, by key
and value projections of its own (cross-attention). The expert predicts the velocity from actions to noise; actions have
two dimensions, padded to four.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from daptq.action_space import ActionDimension
from daptq.interfaces.contract import Interface, Tap
from daptq.interfaces.into_attention_keys import IntoAttentionKeys
from daptq.interfaces.into_attention_values import IntoAttentionValues
from daptq.interfaces.into_consumers import IntoConsumers
from daptq.observations import ACTION, STATE, TASK, CameraSize
from daptq.policies.contract import Batch, Block, DenoisingStep, Policy, Prediction

CAMERA = "observation.image"
DEPTH, WIDTH, EXPERT_WIDTH = 3, 32, 24
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8
PATCH, PICTURE = 8, CameraSize(16, 24)
WORDS, PADDED_ACTION, STEPS = 40, 4, 4
PICTURE_TOKENS = (PICTURE.height // PATCH) * (PICTURE.width // PATCH)


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding of (b, heads, rows, dim), pairs (i, i + dim / 2)."""
    half = x.shape[-1] // 2
    angles = positions[:, None, :, None] * 100.0 ** (-torch.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    return torch.cat(
        [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], dim=-1
    )


def split(x: Tensor, heads: int) -> Tensor:
    """(b, rows, heads * dim) to (b, heads, rows, dim)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Grouped-query attention; (b, query heads, n, dim) to (b, n, query heads * dim)."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Projections of one attention layer."""

    def __init__(self, width: int, memory: int | None = None) -> None:
        super().__init__()
        inner, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
        self.q_proj = nn.Linear(width, inner, bias=False)
        self.k_proj = nn.Linear(memory or width, kv, bias=False)
        self.v_proj = nn.Linear(memory or width, kv, bias=False)
        self.o_proj = nn.Linear(inner, width, bias=False)


class Layer(nn.Module):
    """Attention and a gated perceptron."""

    def __init__(self, width: int, memory: int | None = None) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, memory)
        self.gate, self.up = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def perceptron(self, x: Tensor) -> Tensor:
        h = self.norm2(x)
        gated: Tensor = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return gated


class JointFlowPolicy(Policy):
    """See the module."""

    family: ClassVar[str] = "joint-flow"
    action_mean: Tensor
    action_std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.name, self.chunk_size, self.n_action_steps = "joint-flow", 6, 3
        self.action_space = (ActionDimension(kind="plane", unit="px"), ActionDimension(kind="plane", unit="px"))
        self.cameras, self.state_dim = {CAMERA: PICTURE}, 2
        self.denoising_steps, self.denoising_step = STEPS, DenoisingStep()
        self.patches = nn.Linear(3 * PATCH * PATCH, WIDTH)
        self.vision = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.connector = nn.Linear(WIDTH, WIDTH)
        self.state_proj = nn.Linear(2, WIDTH)
        self.words = nn.Embedding(WORDS, WIDTH)
        self.language = nn.ModuleList([Layer(WIDTH) for _ in range(DEPTH)])
        kv = KV_HEADS * HEAD_DIM
        self.expert = nn.ModuleList([Layer(EXPERT_WIDTH, kv if i % 2 else None) for i in range(DEPTH)])
        self.action_in = nn.Linear(PADDED_ACTION, EXPERT_WIDTH)
        self.time_in = nn.Linear(2 * EXPERT_WIDTH, EXPERT_WIDTH)
        self.time_out = nn.Linear(EXPERT_WIDTH, EXPERT_WIDTH)
        self.final_norm = nn.LayerNorm(EXPERT_WIDTH)
        self.action_out = nn.Linear(EXPERT_WIDTH, PADDED_ACTION)
        self._buffers_of_statistics()
        self.eval()

    def _buffers_of_statistics(self) -> None:
        self.register_buffer("action_mean", torch.tensor([256.0, 240.0]), persistent=False)
        self.register_buffer("action_std", torch.tensor([100.0, 80.0]), persistent=False)

    @classmethod
    def tiny(cls, seed: int = 0) -> Self:
        torch.manual_seed(seed)
        policy = cls()
        for parameter in policy.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.8 / math.sqrt(parameter.shape[1]))
        return policy

    @classmethod
    def from_config(cls, config: Mapping[str, Any], files: Mapping[str, bytes], *, empty: bool = False) -> Self:
        with torch.device("meta" if empty else "cpu"):
            policy = cls()
        policy._buffers_of_statistics()
        return policy

    def config(self) -> dict[str, Any]:
        return {}

    def files(self) -> dict[str, bytes]:
        return {}

    def blocks(self) -> tuple[Block, ...]:
        head = ["action_in", "time_in", "time_out", *(f"expert.{i}" for i in range(DEPTH)), "action_out"]
        return (
            Block(name="patches", role="vision"),
            Block(name="vision", role="vision"),
            Block(name="connector", role="connector"),
            Block(name="state_proj", role="connector"),
            *(Block(name=f"language.{i}", role="language") for i in range(DEPTH)),
            *(Block(name=name, role="action_head") for name in head),
        )

    def head_stack(self) -> tuple[str, ...]:
        return tuple(f"expert.{i}" for i in range(DEPTH))

    def idle_layers(self) -> tuple[str, ...]:
        last = f"language.{DEPTH - 1}"
        return tuple(f"{last}.{name}" for name in ("attention.q_proj", "attention.o_proj", "gate", "up", "down"))

    def interfaces(self) -> tuple[Interface, ...]:
        found: list[Interface] = []
        for i in range(DEPTH):
            vlm, own = f"language.{i}.attention", f"expert.{i}.attention"
            if i % 2:
                found += [
                    Interface(name=path, tap=Tap(module=path), folds=(IntoConsumers(consumers=(path,)),))
                    for path in (f"{own}.k_proj", f"{own}.v_proj")
                ]
                continue
            heads, kv_heads = HEADS, KV_HEADS
            keys = IntoAttentionKeys(query=f"{own}.q_proj", counterpart=f"{own}.k_proj", heads=heads, kv_heads=kv_heads)
            values = IntoAttentionValues(
                output=f"{own}.o_proj", counterpart=f"{own}.v_proj", heads=heads, kv_heads=kv_heads
            )
            for path, fold in ((f"{vlm}.k_proj", keys), (f"{vlm}.v_proj", values)):
                tap = Tap(module=path, side="output")
                found.append(Interface(name=path, tap=tap, folds=(fold,)))
        return tuple(found)

    def interface_mask(self, name: str, batch: Batch) -> Tensor | None:
        return self._prompt(batch)[1]

    def _prompt(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Word numbers (b, words), and which of all prefix rows are real (b, rows)."""
        rows = [[1 + sum(map(ord, word)) % (WORDS - 1) for word in text.split()] for text in batch[TASK]]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        pictures = torch.ones(len(rows), PICTURE_TOKENS + 1, dtype=torch.bool)
        return ids, torch.cat([pictures, ids > 0], dim=1)

    def condition(self, batch: Batch) -> tuple[Tensor, ...]:
        """Which rows are real, then keys (rotated where that is what the expert reads) and values of every layer."""
        picture = batch[CAMERA].unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
        tokens = self.connector(self.vision(self.patches(picture.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2))))
        ids, real = self._prompt(batch)
        x = torch.cat([tokens, self.state_proj(batch[STATE]).unsqueeze(1), self.words(ids)], dim=1)
        positions = real.cumsum(1) - 1
        mask = real[:, None, None, :].expand(-1, -1, x.shape[1], -1)
        memory: list[Tensor] = []
        layer: Any
        for layer in self.language:
            attention, h = layer.attention, layer.norm1(x)
            k = rotate(split(attention.k_proj(h), KV_HEADS), positions)
            v = split(attention.v_proj(h), KV_HEADS)
            memory += [k, v]
            q = rotate(split(attention.q_proj(h), HEADS), positions)
            x = layer.perceptron(x + attention.o_proj(attend(q, k, v, mask)))
        return (real, *memory)

    def noise(self, count: int, generator: torch.Generator | Sequence[torch.Generator]) -> Tensor:
        shape = (self.chunk_size, PADDED_ACTION)
        if isinstance(generator, torch.Generator):
            return torch.randn(count, *shape, generator=generator)
        return torch.stack([torch.randn(*shape, generator=one) for one in generator])

    def velocity(self, condition: tuple[Tensor, ...], noisy: Tensor, time: Tensor) -> Tensor:
        """Predicted velocity (b, chunk, padded action) at time (b,)."""
        real, *memory = condition
        rows = noisy.shape[1]
        frequencies = 0.5 ** torch.arange(EXPERT_WIDTH // 2)
        angles = 2 * math.pi * time[:, None] / frequencies
        embedded = torch.cat([angles.sin(), angles.cos()], dim=1)[:, None].expand(-1, rows, -1)
        x = self.time_out(F.silu(self.time_in(torch.cat([self.action_in(noisy), embedded], dim=-1))))
        positions = real.sum(1, keepdim=True) + torch.arange(rows)
        before = real[:, None, None, :].expand(-1, -1, rows, -1)
        layer: Any
        for i, layer in enumerate(self.expert):
            attention, h = layer.attention, layer.norm1(x)
            k, v = memory[2 * i], memory[2 * i + 1]
            if i % 2:
                k = split(attention.k_proj(k.transpose(1, 2).flatten(2)), KV_HEADS)
                v = split(attention.v_proj(v.transpose(1, 2).flatten(2)), KV_HEADS)
                mask, q = before, split(attention.q_proj(h), HEADS)
            else:
                q = rotate(split(attention.q_proj(h), HEADS), positions)
                k = torch.cat([k, rotate(split(attention.k_proj(h), KV_HEADS), positions)], dim=2)
                v = torch.cat([v, split(attention.v_proj(h), KV_HEADS)], dim=2)
                own = torch.ones(len(x), 1, rows, rows, dtype=torch.bool)
                mask = torch.cat([before, own], dim=-1)
            x = layer.perceptron(x + attention.o_proj(attend(q, k, v, mask)))
        predicted: Tensor = self.action_out(self.final_norm(x))
        return predicted

    def denoise(self, condition: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        """Euler steps from noise (time 1) to actions (time 0)."""
        sample = noise
        for step in range(STEPS):
            self.denoising_step.index = step
            time = torch.full((len(sample),), 1 - step / STEPS)
            sample = sample - self.velocity(condition, sample, time) / STEPS
        return sample[..., : self.action_dim]

    def executed(self, chunk: Tensor, batch: Batch) -> Tensor:
        return self.unlimited(chunk, batch)

    def unlimited(self, chunk: Tensor, batch: Batch) -> Tensor:
        return chunk * self.action_std + self.action_mean

    @property
    def action_unit(self) -> Tensor:
        return self.action_std

    def predict_target(self, batch: Batch, generator: torch.Generator) -> Prediction:
        normalised = (batch[ACTION] - self.action_mean) / self.action_std
        actions = F.pad(normalised, (0, PADDED_ACTION - self.action_dim))
        noise = torch.randn(actions.shape, generator=generator)
        time = torch.rand(len(actions), generator=generator) * 0.999 + 0.001
        weight = time[:, None, None]
        self.denoising_step.index = 0
        predicted = self.velocity(self.condition(batch), weight * noise + (1 - weight) * actions, time)
        real = slice(self.action_dim)
        return Prediction(predicted=predicted[..., real], target=(noise - actions)[..., real], kind="velocity")

    def example_batch(self, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        tasks = ["push the block", "push it to the far left corner", "stop"]
        return {
            CAMERA: torch.rand(3, 3, *PICTURE, generator=generator),
            STATE: torch.randn(3, 2, generator=generator),
            TASK: [tasks[(seed + i) % 3] for i in range(3)],
            ACTION: self.action_mean + self.action_std * torch.randn(3, self.chunk_size, 2, generator=generator),
        }

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        return False


POLICY = JointFlowPolicy
