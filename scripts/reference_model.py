"""The reference architecture before training: sizes, tokenizer, and the heads that exist during training only."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from reference_data import Frames, instruction_corpus
from tokenizers import Tokenizer
from torch import Tensor, nn

from daptq.calibration.demonstrations import CHUNK_SIZE, DemonstrationSettings
from daptq.json_model import read_json
from daptq.observations import STATE
from daptq.policies.cogact_family import TOKENIZER_FILE
from daptq.policies.cogact_small import SmallCogACTConfig, SmallCogACTPolicy
from daptq.policies.contract import Batch
from daptq.policies.diffusion import add_noise
from daptq.policies.tokenizer import SPECIAL_TOKENS, train_tokenizer

SEED = 20261123


def reference_tokenizer() -> Tokenizer:
    """The tokenizer of the reference policy."""
    return train_tokenizer(instruction_corpus(), 512)


def reference_config(frames: Frames, *, name: str, vocab_size: int) -> dict[str, Any]:
    """The sizes of the reference architecture, with normalisation statistics of the demonstrations."""
    actions = frames.tensors["action"][:, 0].double()
    floor = torch.tensor([0.005] * 3 + [0.02] * 3 + [1.0], dtype=torch.float64)
    low = torch.minimum(actions.quantile(0.01, dim=0), -floor)
    high = torch.maximum(actions.quantile(0.99, dim=0), floor)
    state = frames.tensors[STATE].double()
    std = state.std(dim=0).clamp_min(0.02)
    config = SmallCogACTConfig(
        name=name,
        cameras=dict(frames.settings.cameras),
        state_dim=7,
        vision_channels=(24, 48, 96, 192),
        vision_depth=2,
        vision_heads=4,
        vision_mlp_ratio=3.0,
        keypoints=32,
        language_width=192,
        language_depth=4,
        language_heads=4,
        language_mlp=512,
        vocab_size=vocab_size,
        action_width=192,
        action_depth=6,
        action_heads=4,
        action_low=tuple(low.float().tolist()),
        action_high=tuple(high.float().tolist()),
        action_mask=(True,) * 6 + (False,),
        state_mean=tuple(state.mean(dim=0).float().tolist()),
        state_std=tuple(std.float().tolist()),
        chunk_size=CHUNK_SIZE,
        n_action_steps=3,
        denoising_steps=10,
        guidance_scale=1.5,
        prompt_suffix=(SPECIAL_TOKENS.index("<act>"), SPECIAL_TOKENS.index("</s>")),
    )
    return asdict(config)


class Learner(nn.Module):
    """The policy with the training-only heads: chunk regression, scene, goal."""

    def __init__(self, policy: SmallCogACTPolicy, objects: int) -> None:
        super().__init__()
        self.policy = policy
        width = policy.settings.language_width
        tokens = sum((size // 32) ** 2 + 1 for size in policy.settings.cameras.values())
        self.regression = nn.Sequential(
            nn.Linear(width, 512), nn.GELU(), nn.Linear(512, CHUNK_SIZE * policy.action_dim)
        )
        self.scene = nn.Sequential(nn.Linear(tokens * width, 256), nn.GELU(), nn.Linear(256, objects * 5))
        self.goal = nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, 8))

    def perception_loss(self, batch: Batch, labels: dict[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Loss, cognition feature, and its parts for the log."""
        cognition, image_tokens = self.policy.perceive(batch)
        chunk = self.regression(cognition).view(-1, CHUNK_SIZE, self.policy.action_dim)
        wanted = self.policy.normalize(labels["action"])
        valid = labels["valid"]
        action = (
            (F.smooth_l1_loss(chunk, wanted, reduction="none", beta=0.1) * valid).sum() / valid.sum() / chunk.shape[-1]
        )
        seen = ~labels["scene"].isnan()
        scene = F.smooth_l1_loss(self.scene(image_tokens.flatten(1))[seen], labels["scene"][seen], beta=0.1)
        goal = F.smooth_l1_loss(self.goal(cognition), labels["goal"], beta=0.1)
        parts = {"action": action.item(), "scene": scene.item(), "goal": goal.item()}
        return action + scene + goal, cognition, parts

    def diffusion_loss(self, cognition: Tensor, action: Tensor, valid: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the predicted noise, with the condition dropped for one sample in ten."""
        policy, net = self.policy, self.policy.action_model.net
        noise = torch.randn(action.shape, generator=generator)
        timesteps = torch.randint(0, policy.settings.diffusion_steps, (len(action),), generator=generator)
        dropped = torch.rand(len(action), 1, generator=generator) < 0.1
        condition = torch.where(dropped, net.z_embedder.uncondition, cognition).unsqueeze(1)
        predicted = net(add_noise(policy.normalize(action), noise, timesteps, policy.alphas), timesteps, condition)
        error = (predicted - noise).square() * valid
        return error.sum() / valid.sum() / action.shape[-1]


def new_learner(config: Path, settings: DemonstrationSettings) -> Learner:
    """An untrained learner of such demonstrations for a saved configuration; the same one every time."""
    torch.manual_seed(SEED)
    files = {TOKENIZER_FILE: reference_tokenizer().to_str().encode()}
    return Learner(SmallCogACTPolicy.from_config(read_json(config), files), len(settings.objects))
