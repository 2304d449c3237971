"""Trains a policy of the reference architecture by imitation of a scripted expert, in resumable phases.

    python scripts/train_reference.py demonstrations --shards 40
    python scripts/train_reference.py perception --steps 5000      # or: start --policy FOLDER
    python scripts/train_reference.py recoveries --shards 8        # optional: expert takes over from the policy
    python scripts/train_reference.py action --steps 8000
    python scripts/train_reference.py joint --steps 500            # optional
    python scripts/train_reference.py export --output src/daptq/policies/reference

The packaged policy learned `tabletop`. `--environment simpler --work runs/simpler` before the phase learns SimplerEnv's
WidowX tasks, where ManiSkill is installed; `perception --policy reference` begins with what that policy knows.

Phase *perception* trains everything up to the cognition feature with a direct chunk regression and privileged labels,
whose heads are dropped afterwards. Phase *action* caches cognition features and trains the diffusion head on them
alone. Phase *joint* tunes both. Every phase checkpoints into the work folder and continues where it was killed.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from reference_data import Frames, record_recoveries
from reference_model import SEED, Learner, new_learner, reference_config, reference_tokenizer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from daptq.artifacts import provenance, write_artifact, write_json
from daptq.calibration.demonstrations import CHUNK_SIZE, KIND, DemonstrationSet, DemonstrationSettings, shard_tensors
from daptq.calibration.simpler import DEMONSTRATIONS as SIMPLER
from daptq.calibration.tabletop import DEMONSTRATIONS as TABLETOP
from daptq.packing.checkpoint import load_policy, save_policy
from daptq.policies.contract import Policy

BATCH = 64
ACTION_BATCH = 256
NOISE_DRAWS = 4
ENVIRONMENTS: Mapping[str, DemonstrationSettings] = {settings.name: settings for settings in (TABLETOP, SIMPLER)}


@dataclass(frozen=True, kw_only=True)
class Place:
    """What is learned and where the work lies."""

    settings: DemonstrationSettings
    work: Path

    @property
    def folders(self) -> list[Path]:
        """Where the demonstrations and the recoveries lie."""
        return [DemonstrationSet(self.settings, "train").folder, self.work / "recoveries"]

    @property
    def config(self) -> Path:
        """The policy's configuration."""
        return self.work / "config.json"


@dataclass
class Run:
    """One resumable phase: parameters, their exponential moving average, optimizer and step count."""

    path: Path
    learner: Learner
    steps: int
    rate: float
    prefixes: tuple[str, ...]

    def __post_init__(self) -> None:
        self.names = [n for n, _ in self.learner.named_parameters() if n.startswith(self.prefixes)]
        named = dict(self.learner.named_parameters())
        self.parameters = [named[name] for name in self.names]
        for name, parameter in named.items():
            parameter.requires_grad_(name in set(self.names))
        decayed = [p for p in self.parameters if p.ndim > 1]
        others = [p for p in self.parameters if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 1e-3}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=self.rate, betas=(0.9, 0.98), foreach=True)
        self.average = {name: p.detach().clone() for name, p in zip(self.names, self.parameters, strict=True)}
        self.step = 0
        self.seconds = 0.0
        self._started = time.monotonic()
        if self.path.exists():
            self._restore()

    def update(self, loss: Tensor) -> None:
        """One optimizer step at the scheduled rate, and the moving average."""
        warmup = min(1.0, (self.step + 1) / 100)
        rate = self.rate * warmup * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / self.steps))))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(1 - 6 / self.steps, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            averages: list[Tensor] = list(self.average.values())
            torch._foreach_lerp_(averages, [*self.parameters], 1 - decay)

    def save(self) -> None:
        """Writes everything needed to continue, to a temporary name that is then renamed."""
        now = time.monotonic()
        self.seconds, self._started = self.seconds + now - self._started, now
        tensors = {f"model.{n}": p.detach() for n, p in self.learner.named_parameters()}
        tensors |= {f"average.{n}": p for n, p in self.average.items()}
        for name, parameter in zip(self.names, self.parameters, strict=True):
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{name}.{key}"] = value
        temporary = self.path.with_suffix(".tmp")
        metadata = {"step": str(self.step), "seconds": str(self.seconds)}
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata=metadata)
        temporary.replace(self.path)

    def _restore(self) -> None:
        with safe_open(self.path, "pt") as file:
            metadata = file.metadata()
        self.step, self.seconds = int(metadata["step"]), float(metadata["seconds"])
        tensors = load_file(self.path)
        with torch.no_grad():
            for name, parameter in self.learner.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
        for name, parameter in zip(self.names, self.parameters, strict=True):
            self.average[name].copy_(tensors[f"average.{name}"])
            prefix = f"optimizer.{name}."
            state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            if state:  # a layer that never runs has no gradient and so no state
                self.optimizer.state[parameter] = state

    def averaged(self) -> Learner:
        """A copy of the learner with the averaged parameters."""
        learner = copy.deepcopy(self.learner)
        named = dict(learner.named_parameters())
        with torch.no_grad():
            for name, value in self.average.items():
                named[name].copy_(value)
        return learner


PERCEPTION = (
    "policy.vision",
    "policy.projector",
    "policy.keypoint",
    "policy.state",
    "policy.llm",
    "regression",
    "scene",
    "goal",
)
ACTION_HEAD = ("policy.action_model",)


def load_averaged(learner: Learner, path: Path) -> None:
    """Loads a finished phase: its averaged parameters where it trained, its plain ones elsewhere."""
    tensors = load_file(path)
    with torch.no_grad():
        for name, parameter in learner.named_parameters():
            parameter.copy_(tensors.get(f"average.{name}", tensors[f"model.{name}"]))


def indices(count: int, size: int, step: int) -> Tensor:
    """Frame indices of batch `step`, so that a resumed run draws what the killed one would have drawn."""
    return torch.randint(0, count, (size,), generator=torch.Generator().manual_seed(SEED + step))


@click.group()
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/reference"), show_default=True)
@click.option("--environment", type=click.Choice(list(ENVIRONMENTS)), default="tabletop", show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.pass_context
def main(context: click.Context, work: Path, environment: str, threads: int) -> None:
    """Trains a policy of the reference architecture."""
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    context.obj = Place(settings=ENVIRONMENTS[environment], work=work)


@main.command()
@click.option("--shards", default=40, show_default=True)
@click.option("--first", default=0, show_default=True)
@click.option("--split", default="train", show_default=True)
@click.pass_obj
def demonstrations(place: Place, shards: int, first: int, split: str) -> None:
    """Records the demonstrations that are not there yet."""
    source = DemonstrationSet(place.settings, split)
    for index in range(first, first + shards):
        success = source.shard(index).metadata["success"]
        click.echo(f"shard {index}: {sum(success)}/{len(success)} episodes succeed")


def setup(place: Place) -> tuple[Frames, Learner]:
    """Frames and an untrained learner; its normalisation is settled by the frames of the first call."""
    frames = Frames(place.folders, place.settings)
    click.echo(f"{frames.shards} shards, {len(frames)} frames")
    if not place.config.exists():
        name = "reference" if place.settings is TABLETOP else place.settings.name
        write_json(place.config, reference_config(frames, name=name, vocab_size=reference_tokenizer().get_vocab_size()))
    learner = new_learner(place.config, place.settings)
    count = sum(p.numel() for p in learner.policy.parameters())
    click.echo(f"{count / 1e6:.2f} M parameters, {len(learner.policy.linear_layers())} linear layers")
    return frames, learner


def adopt(learner: Learner, trained: Policy) -> None:
    """Copies the parameters of a trained policy that the learner's has, too."""
    known = dict(trained.named_parameters())
    copied = 0
    with torch.no_grad():
        for name, parameter in learner.policy.named_parameters():
            if name in known and known[name].shape == parameter.shape:
                parameter.copy_(known[name])
                copied += parameter.numel()
    click.echo(f"{copied / 1e6:.2f} M parameters taken from {trained.name}")


@main.command()
@click.option("--steps", default=5000, show_default=True)
@click.option("--rate", default=1e-3, show_default=True)
@click.option("--policy", help="float policy whose weights a new run begins with, where names and shapes agree")
@click.pass_obj
def perception(place: Place, steps: int, rate: float, policy: str | None) -> None:
    """Trains vision, connector and language model."""
    frames, learner = setup(place)
    if policy is not None:
        adopt(learner, load_policy(policy))
    run = Run(place.work / "perception.safetensors", learner, steps, rate, PERCEPTION)
    started, first = time.monotonic(), run.step
    while run.step < steps:
        generator = torch.Generator().manual_seed(run.step)
        batch, labels = frames.batch(indices(len(frames), BATCH, run.step), generator)
        loss, _, parts = learner.perception_loss(batch, labels)
        run.update(loss)
        if run.step % 50 == 0:
            speed = (run.step - first) * BATCH / (time.monotonic() - started)
            click.echo(f"{run.step} {speed:.0f}/s " + " ".join(f"{k} {v:.4f}" for k, v in parts.items()))
        if run.step % 250 == 0 or run.step == steps:
            run.save()


@torch.inference_mode()
def cache_cognition(frames: Frames, learner: Learner, index: Tensor) -> Tensor:
    """Cognition features, float32 (n, width), of the frames `index` as the robot sees them: without augmentation."""
    parts = [learner.policy.perceive(frames.batch(part, None)[0])[0] for part in index.split(256)]
    return torch.cat(parts).clone()


@main.command()
@click.option("--steps", default=8000, show_default=True)
@click.option("--rate", default=1e-3, show_default=True)
@click.option("--frames", "count", default=40_000, show_default=True, help="frames whose feature is cached")
@click.pass_obj
def action(place: Place, steps: int, rate: float, count: int) -> None:
    """Trains the diffusion head on cached cognition features."""
    frames, learner = setup(place)
    load_averaged(learner, place.work / "perception.safetensors")
    owners = torch.randperm(len(frames), generator=torch.Generator().manual_seed(SEED))[:count]
    features = cache_cognition(frames, learner, owners)
    click.echo(f"{len(features)} cognition features cached")
    run = Run(place.work / "action.safetensors", learner, steps, rate, ACTION_HEAD)
    actions, lengths = frames.tensors["action"], frames.tensors["valid"]
    started, first, recent = time.monotonic(), run.step, []
    while run.step < steps:
        index = indices(len(features), ACTION_BATCH, run.step)
        owner = owners[index]
        valid = (torch.arange(CHUNK_SIZE) < lengths[owner][:, None]).float().unsqueeze(-1)
        generator = torch.Generator().manual_seed(run.step)
        loss = learner.diffusion_loss(features[index], actions[owner], valid, generator)
        run.update(loss)
        recent.append(loss.item())
        if run.step % 50 == 0:
            speed = (run.step - first) * ACTION_BATCH / (time.monotonic() - started)
            click.echo(f"{run.step} {speed:.0f}/s diffusion {sum(recent) / len(recent):.4f}")
            recent.clear()
        if run.step % 250 == 0 or run.step == steps:
            run.save()


@main.command()
@click.option("--steps", default=500, show_default=True)
@click.option("--rate", default=2e-4, show_default=True)
@click.pass_obj
def joint(place: Place, steps: int, rate: float) -> None:
    """Tunes the whole policy on both losses."""
    frames, learner = setup(place)
    load_averaged(learner, place.work / "action.safetensors")
    run = Run(place.work / "joint.safetensors", learner, steps, rate, PERCEPTION + ACTION_HEAD)
    while run.step < steps:
        generator = torch.Generator().manual_seed(SEED + run.step)
        batch, labels = frames.batch(indices(len(frames), BATCH, SEED + run.step), generator)
        loss, cognition, parts = learner.perception_loss(batch, labels)
        repeated, actions, valid = (
            tensor.repeat(NOISE_DRAWS, *[1] * (tensor.ndim - 1))
            for tensor in (cognition, labels["action"], labels["valid"])
        )
        diffusion = learner.diffusion_loss(repeated, actions, valid, generator)
        run.update(loss + diffusion)
        if run.step % 20 == 0:
            click.echo(
                f"{run.step} diffusion {diffusion.item():.4f} " + " ".join(f"{k} {v:.4f}" for k, v in parts.items())
            )
        if run.step % 100 == 0 or run.step == steps:
            run.save()


@main.command()
@click.option("--policy", default="reference", show_default=True, help="name or folder of a float policy")
@click.pass_obj
def start(place: Place, policy: str) -> None:
    """Takes the weights and the normalisation of a trained policy in place of the perception phase."""
    trained = load_policy(policy)
    write_json(place.config, trained.config())
    tensors = {f"model.policy.{name}": tensor.detach() for name, tensor in trained.named_parameters()}
    heads = {
        f"model.{name}": tensor.detach()
        for name, tensor in new_learner(place.config, place.settings).named_parameters()
        if not name.startswith("policy.")
    }
    save_file(tensors | heads, place.work / "perception.safetensors", metadata={"step": "0", "seconds": "0"})


@main.command()
@click.option("--shards", default=8, show_default=True)
@click.option("--first", default=0, show_default=True)
@click.option("--phase", type=click.Choice(["action", "joint"]), default="action", show_default=True)
@click.pass_obj
def recoveries(place: Place, shards: int, first: int, phase: str) -> None:
    """Records episodes in which the expert takes over from the policy of a finished phase."""
    learner = new_learner(place.config, place.settings)
    load_averaged(learner, place.work / f"{phase}.safetensors")
    settings = place.settings
    environment = settings.environment()
    for index in range(first, first + shards):
        episodes = record_recoveries(environment, settings, learner.policy.eval(), index)
        metadata: dict[str, Any] = {
            "success": [e.success for e in episodes],
            "seeds": [e.seed for e in episodes],
            "phase": phase,
        }
        path = place.work / "recoveries" / f"shard-{index:05d}"
        write_artifact(path, kind=KIND, tensors=shard_tensors(episodes, list(settings.tasks)), metadata=metadata)
        click.echo(f"shard {index}: {sum(metadata['success'])}/{len(episodes)} episodes succeed")
    environment.close()


@main.command()
@click.option("--phase", type=click.Choice(["action", "joint"]), default="joint", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.pass_obj
def export(place: Place, phase: str, output: Path) -> None:
    """Writes the averaged weights of a finished phase as a policy folder."""
    learner = new_learner(place.config, place.settings)
    load_averaged(learner, place.work / f"{phase}.safetensors")
    phases = {}
    for path in sorted(place.work.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            phases[path.stem] = {key: round(float(value)) for key, value in file.metadata().items()}
    described = provenance(seed=SEED) | {"training": {"phases": phases, "batch": BATCH, "action_batch": ACTION_BATCH}}
    save_policy(learner.policy, output, provenance=described)
    click.echo(f"wrote {output}: {phases}")


if __name__ == "__main__":
    main()
