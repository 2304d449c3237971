"""Discordant episodes: which one policy solves and the other does not, as a list and side by side as videos.

A video is one picture with all its frames on top of each other, moved by CSS: it starts paused, plays and pauses at the
press of a button, and runs no script.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass

from daptq.evaluation.comparison import Comparison
from daptq.evaluation.result import EvaluationResult
from daptq.metrics.pairs import Paired
from daptq.report.elements import Section, Table
from daptq.report.labels import PolicyLabels
from daptq.report.verdict import FAIL, PASS
from daptq.report.videos import Video, Videos
from daptq.report.wording import count_of, task_name

_OPEN_UP_TO = 12
_TITLE = "Discordant episodes"


@dataclass(frozen=True, kw_only=True)
class Side:
    """One half of a video: its policy, `PASS` or `FAIL`, and what happens."""

    policy: str
    outcome: str
    text: str


@dataclass(frozen=True, kw_only=True)
class ShownVideo:
    """A video as the page plays it.

    Attributes:
        anchor: Name of its play button, unique on the page.
        heading: Number and task of the episode.
        outcome: Whether the candidate lost or won it.
        sides: What is left and right.
        alternative: What it shows, for readers who cannot see it.
        data: The picture of all frames, WebP in base64.
        width: Width of the picture [px].
        height: Height of the picture of all frames [px].
        frames: Number of frames.
        duration: How long it takes [s].
        delay: Time of the frame that is shown until it is played [s].
        note: What is to be said about it, or nothing.
    """

    anchor: str
    heading: str
    outcome: str
    sides: tuple[Side, Side]
    alternative: str
    data: str
    width: int
    height: int
    frames: int
    duration: float
    delay: float
    note: str


@dataclass(frozen=True, kw_only=True)
class DiscordantEpisodes:
    """The discordant episodes of one comparison.

    Attributes:
        policy: Label of the candidate.
        none_of: Number of episodes, where none of them is discordant.
        summary: How many were lost and won.
        opened: Whether the list is unfolded at first.
        episodes: The list.
        videos: Those episodes that were recorded.
    """

    policy: str
    none_of: int | None
    summary: str
    opened: bool
    episodes: Table
    videos: tuple[ShownVideo, ...]


@dataclass(frozen=True, kw_only=True)
class Discordant:
    """The discordant episodes of every comparison, and what is to be said of their videos."""

    comparisons: tuple[DiscordantEpisodes, ...]
    note: str


def discordant_section(result: EvaluationResult, labels: PolicyLabels, videos: Videos) -> Section:
    """The discordant episodes of every comparison that ran whole episodes."""
    comparisons = tuple(
        _episodes(number, comparison, comparison.paired, labels, videos)
        for number, comparison in enumerate(result.comparisons)
        if comparison.paired is not None
    )
    return Section(
        anchor="episodes",
        link=_TITLE,
        title=_TITLE,
        template="discordant_episodes.html",
        view=Discordant(comparisons=comparisons, note=videos.note),
        absent="" if comparisons else "No pair of whole episodes was run, so no episode is discordant.",
    )


def _episodes(
    number: int, comparison: Comparison, paired: Paired, labels: PolicyLabels, videos: Videos
) -> DiscordantEpisodes:
    entries = sorted(paired.discordant, key=lambda entry: (entry.succeeds != "baseline", entry.index))
    summary = f"{paired.only_baseline} lost, {paired.only_candidate} won"
    names = {"baseline": labels.label(comparison.against), "candidate": labels.label(comparison.policy)}
    listed = Table(
        caption=f"Episodes in which just one of the two succeeds: {summary}",
        header=("episode", "task", "seed", "outcome", "succeeds", "after step"),
        rows=[
            (
                str(entry.index),
                task_name(entry.task),
                str(entry.seed),
                _outcome(entry.succeeds),
                names[entry.succeeds],
                str(entry.first_success),
            )
            for entry in entries
        ],
    )
    recorded = [video for video in videos.videos if video.policy == comparison.policy]
    return DiscordantEpisodes(
        policy=names["candidate"],
        none_of=None if entries else paired.n,
        summary=summary,
        opened=len(entries) <= _OPEN_UP_TO,
        episodes=listed,
        videos=tuple(_shown(video, labels, f"video-{number}-{place}") for place, video in enumerate(recorded)),
    )


def _outcome(succeeds: str) -> str:
    """What an episode is to the candidate, by which of the two policies succeeds."""
    return "lost" if succeeds == "baseline" else "won"


def _shown(video: Video, labels: PolicyLabels, anchor: str) -> ShownVideo:
    lost = video.succeeds == "baseline"
    left, right = labels.label(video.against), labels.label(video.policy)
    return ShownVideo(
        anchor=anchor,
        heading=f"Episode {video.index}, {task_name(video.task)}",
        outcome=_outcome(video.succeeds),
        sides=(_side(left, video, succeeds=lost), _side(right, video, succeeds=not lost)),
        alternative=(
            f"{count_of(video.frames, 'picture')} of episode {video.index}, from the same start with the same noise: "
            f"left {left}, right {right}"
        ),
        data=b64encode(video.picture).decode(),
        width=video.width,
        height=video.frames * video.height,
        frames=video.frames,
        duration=video.seconds,
        delay=video.seconds * (video.poster + 0.5) / video.frames,
        note=video.note,
    )


def _side(policy: str, video: Video, *, succeeds: bool) -> Side:
    if succeeds:
        return Side(policy=policy, outcome=PASS, text=f"succeeds after step {video.first_success}")
    return Side(policy=policy, outcome=FAIL, text="does not succeed")
