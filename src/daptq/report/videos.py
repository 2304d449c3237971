"""Videos of discordant episodes: both policies run an episode again, and their pictures are put side by side.

An episode is determined by its seed, so nothing has to be kept while an evaluation runs. What is recorded is checked
against the result: weights by their hash, and the outcome, which may differ on another machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain, zip_longest
from pathlib import Path
from types import ModuleType
from typing import cast

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from daptq.catalog import ENVIRONMENTS
from daptq.closed_loop.episodes import Episode
from daptq.closed_loop.rollout import EpisodeRecord, run_episode
from daptq.environments.contract import Environment, Info, Observation
from daptq.errors import InvalidInputError, MissingDependencyError
from daptq.evaluation.comparison import Comparison
from daptq.evaluation.describe import describe_policy
from daptq.evaluation.result import EvaluationResult, PolicyResult
from daptq.evaluation.worker_context import PolicySource, one_thread, open_policy, picture_sizes
from daptq.metrics.pairs import Discordant, Paired
from daptq.policies.contract import Policy
from daptq.progress import Progress

EDGE = 160
MOST_FRAMES = 64
MOST_BYTES = 3_400_000  # base64 makes 4.5 MB of it, and the page stays below 5
_QUALITY = 75

Picture = UInt8[np.ndarray, "edge edge 3"]


@dataclass(frozen=True, kw_only=True)
class Video:
    """One discordant episode, the baseline left and the candidate right.

    Attributes:
        policy: Name of the candidate.
        against: Name of the baseline.
        index: Number of the episode.
        task: Its task.
        succeeds: ``"baseline"`` or ``"candidate"``.
        first_success: Number of steps after which that one first succeeds.
        picture: WebP of all frames on top of each other, the first one uppermost.
        frames: Number of frames.
        width: Width of a frame [px].
        height: Height of a frame [px].
        seconds: How long the episode takes the robot.
        poster: Number of the frame that shows the success first.
        note: What is to be said about it, or nothing.
    """

    policy: str
    against: str
    index: int
    task: str
    succeeds: str
    first_success: int
    picture: bytes
    frames: int
    width: int
    height: int
    seconds: float
    poster: int
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Videos:
    """The videos of a page.

    Attributes:
        videos: What is shown.
        note: What is not, and why; empty when everything is.
    """

    videos: tuple[Video, ...] = ()
    note: str = "No animation was made: daptq report --animate 4 replays episodes where the policies are at hand."


def record_discordant(
    result: EvaluationResult | Mapping[str, object],
    *,
    count: int,
    sources: Mapping[str, PolicySource] | None = None,
    progress: Progress | None = None,
) -> Videos:
    """Records discordant episodes of every comparison, lost and won ones in turn.

    Args:
        result: What `evaluate` returned, or the JSON of it.
        count: Most episodes of one comparison.
        sources: Policies by their name in the result; None where the names are those of folders or packaged policies.
        progress: Called after every episode with how many are done, how many there are, and what was done.

    Raises:
        InvalidInputError: `count` is negative, a policy has other weights than the evaluated one, or the environment
            draws no pictures.
        UnknownNameError: There is no policy of that name.
        ArtifactError: A folder holds no policy, or is damaged.
        MissingDependencyError: Pillow is not installed.
    """
    if count < 0:
        raise InvalidInputError(f"episodes to animate must be at least 0, got {count}. Use 0 for none.")
    if not isinstance(result, EvaluationResult):
        result = EvaluationResult.from_json(result)
    chosen = [(one, entry) for one in result.comparisons for entry in _chosen(one.paired, count)]
    if not chosen:
        return Videos(note="" if count else "No animation was asked for.")
    _pillow()
    recorder = _Recorder(result, sources or {}, {name for one, _ in chosen for name in (one.against, one.policy)})
    videos: list[Video] = []
    try:
        for number, (comparison, entry) in enumerate(chosen, start=1):
            video = recorder.video(comparison, entry)
            if progress is not None:
                progress(number, len(chosen), f"animation of episode {video.index} of {video.policy}")
            if sum(len(one.picture) for one in videos) + len(video.picture) > MOST_BYTES:
                left = len(chosen) - len(videos)
                return Videos(videos=tuple(videos), note=f"{left} more would make the page too large.")
            videos.append(video)
    finally:
        recorder.close()
    everything = sum(len(one.paired.discordant) for one in result.comparisons if one.paired is not None)
    left = everything - len(videos)
    return Videos(videos=tuple(videos), note=f"{left} more discordant episodes are not animated." if left else "")


def _chosen(paired: Paired | None, count: int) -> list[Discordant]:
    entries = () if paired is None else paired.discordant
    lost = [entry for entry in entries if entry.succeeds == "baseline"]
    won = [entry for entry in entries if entry.succeeds == "candidate"]
    turns = chain.from_iterable(zip_longest(lost, won))
    return [entry for entry in turns if entry is not None][:count]


class _Recorder:
    """Runs episodes of a result again; an episode of a policy is run once, however many videos show it."""

    def __init__(self, result: EvaluationResult, sources: Mapping[str, PolicySource], names: set[str]) -> None:
        described = {policy.name: policy for policy in result.policies}
        self.policies = {name: _evaluated(described[name], sources.get(name, name)) for name in sorted(names)}
        sizes = picture_sizes(self.policies)
        variant = {} if result.variant is None else {"variant": result.variant}
        self.environment: Environment = ENVIRONMENTS.load(result.environment).make(image_size=sizes, **variant)
        self._runs: dict[tuple[str, int], tuple[EpisodeRecord, list[Picture]]] = {}

    def video(self, comparison: Comparison, entry: Discordant) -> Video:
        names = {"baseline": comparison.against, "candidate": comparison.policy}
        episode = Episode(index=entry.index, task=entry.task, seed=entry.seed)
        runs = {role: self._run(name, episode) for role, name in names.items()}
        records = {role: record for role, (record, _) in runs.items()}
        as_recorded = records[entry.succeeds].first_success == entry.first_success and all(
            record.success_any_step == (role == entry.succeeds) for role, record in records.items()
        )
        horizon = self.environment.horizon_of(entry.task)
        stride = _stride(horizon)
        pictures = [_with_sign(frames, record, stride) for record, frames in runs.values()]
        strip = np.concatenate([np.concatenate(pair, axis=1) for pair in zip(*pictures, strict=True)])
        return Video(
            policy=comparison.policy,
            against=comparison.against,
            index=entry.index,
            task=entry.task,
            succeeds=entry.succeeds,
            first_success=entry.first_success,
            picture=_encoded(strip),
            frames=len(pictures[0]),
            width=2 * EDGE,
            height=EDGE,
            seconds=horizon / self.environment.control_frequency,
            poster=min(math.ceil(entry.first_success / stride), len(pictures[0]) - 1),
            note="" if as_recorded else "On this machine the episode came out differently from the recorded one.",
        )

    def close(self) -> None:
        self.environment.close()

    def _run(self, name: str, episode: Episode) -> tuple[EpisodeRecord, list[Picture]]:
        key = (name, episode.index)
        if key not in self._runs:
            recorded = _PictureRecorder(self.environment, _stride(self.environment.horizon_of(episode.task)))
            with one_thread():
                record = run_episode(cast("Environment", recorded), self.policies[name], episode, label=name)
            self._runs[key] = (record, recorded.frames)
        return self._runs[key]


@dataclass
class _PictureRecorder:
    """An environment that keeps a small picture of the start and of every so many steps."""

    environment: Environment
    stride: int
    frames: list[Picture] = field(default_factory=list)
    _steps: int = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.environment, name)

    def reset(self, *, seed: int | None = None, options: dict[str, object] | None = None) -> tuple[Observation, Info]:
        answer = self.environment.reset(seed=seed, options=options)
        self.frames, self._steps = [self._picture()], 0
        return answer

    def advance(self, action: NDArray[np.float32]) -> Info:
        info = self.environment.advance(action)
        self._steps += 1
        if self._steps % self.stride == 0:
            self.frames.append(self._picture())
        return info

    def _picture(self) -> Picture:
        drawn = self.environment.render() if self.environment.render_mode == "rgb_array" else None
        if not isinstance(drawn, np.ndarray):
            message = "environment must draw pictures (render_mode 'rgb_array') to be animated, got none."
            raise InvalidInputError(message + " Use --animate 0.")
        image = _pillow().fromarray(drawn)
        edge = min(image.size)
        return np.asarray(image.resize((EDGE, EDGE), box=(0, 0, edge, edge)))


def _evaluated(described: PolicyResult, source: PolicySource) -> Policy:
    """The policy of a result, or an error when it is another one by now."""
    if isinstance(source, str) and "/" in source and not Path(source).expanduser().exists():
        message = f"policy must be a folder on this machine to be animated, got {source}: no such folder."
        raise InvalidInputError(message + " Make the page where it was evaluated, or use --animate 0.")
    policy = open_policy(source)
    if describe_policy(policy).weights.sha256 != described.weights.sha256:
        message = f"policy {described.name} must have the weights that were evaluated to be animated, got others."
        raise InvalidInputError(message + " Evaluate it again, or use --animate 0.")
    return policy


def _stride(horizon: int) -> int:
    """Control steps from one frame to the next."""
    return math.ceil(horizon / (MOST_FRAMES - 1))


def _with_sign(frames: Sequence[Picture], record: EpisodeRecord, stride: int) -> list[Picture]:
    """The frames; those after the first success carry a tick in the corner."""
    if record.first_success is None:
        return list(frames)
    return [_ticked(frame) if stride * number >= record.first_success else frame for number, frame in enumerate(frames)]


def _ticked(frame: Picture) -> Picture:
    from PIL import Image, ImageDraw

    scale = 4  # drawn large and made small again, so that its edges are smooth
    size = 26 * scale
    sign = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    pen = ImageDraw.Draw(sign)
    pen.ellipse((0, 0, size - 1, size - 1), fill=(16, 18, 22, 255))
    places = [(x * scale, y * scale) for x, y in ((7, 13.5), (11.5, 18), (19, 8.5))]
    pen.line(places, fill=(255, 255, 255, 255), width=3 * scale, joint="curve")
    small = sign.resize((26, 26))
    image = Image.fromarray(frame)
    image.paste(small, (EDGE - 32, 6), small)
    return np.asarray(image)


def _encoded(strip: NDArray[np.uint8]) -> bytes:
    stream = BytesIO()
    _pillow().fromarray(strip).save(stream, "WEBP", quality=_QUALITY)
    return stream.getvalue()


def _pillow() -> ModuleType:
    """Pillow's module of pictures."""
    try:
        from PIL import Image
    except ImportError as error:
        message = "Pillow must be installed to animate episodes, got no module PIL."
        raise MissingDependencyError(message + ' Run: pip install "daptq[report]".') from error
    return Image
