"""Videos of discordant episodes: frames of both policies side by side, of the episodes that the result names."""

from __future__ import annotations

import sys
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from daptq.errors import InvalidInputError, MissingDependencyError, UnknownNameError
from daptq.report import videos
from daptq.report.videos import EDGE, Video, Videos, record_discordant
from tests.closed_loop.json_results import evaluated
from tests.closed_loop.point_world import PointWorld

Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def drawn(point_world: list[PointWorld], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the point world draw itself: as bright as the point is far to the right."""

    def render(self: PointWorld) -> NDArray[np.uint8]:
        return np.full((200, 200, 3), round(128 + 500 * float(np.clip(self.x, -0.2, 0.2))), dtype=np.uint8)

    monkeypatch.setattr(PointWorld, "render_mode", "rgb_array", raising=False)
    monkeypatch.setattr(PointWorld, "render", render)


@pytest.fixture
def policies(make_pusher: Make) -> dict[str, Any]:
    return {"straight": make_pusher("straight"), "bent": make_pusher("bent", error=-0.01)}


@pytest.fixture
def result(policies: dict[str, Any]) -> dict[str, Any]:
    """The candidate does not arrive at the left: episodes 0, 2, 4 are lost."""
    return evaluated({"bent": policies["bent"]}, against=policies["straight"], environment="point", episodes=6, seed=1)


def frames(video: Video) -> NDArray[np.uint8]:
    """Pixels (frames, height, width, 3)."""
    pixels = np.asarray(Image.open(BytesIO(video.picture)).convert("RGB"))
    return pixels.reshape(video.frames, video.height, video.width, 3)


def test_lost_episodes_are_shown_side_by_side(result: dict[str, Any], policies: dict[str, Any]) -> None:
    done: list[tuple[int, int]] = []
    recorded = record_discordant(result, count=2, sources=policies, progress=lambda *told: done.append(told[:2]))
    assert done == [(1, 2), (2, 2)]
    assert [(video.index, video.task, video.succeeds, video.note) for video in recorded.videos] == [
        (0, "left", "baseline", ""),
        (2, "left", "baseline", ""),
    ]
    assert recorded.note == "1 more discordant episodes are not animated."
    video = recorded.videos[0]
    assert video.first_success == result["paired"]["discordant"][0]["first_success"]
    assert (video.frames, video.width, video.height, video.seconds) == (25, 2 * EDGE, EDGE, 24 / 5)
    pixels = frames(video).astype(float)
    left, right = pixels[:, EDGE // 2, EDGE // 2, 0], pixels[:, EDGE // 2, EDGE + EDGE // 2, 0]
    # The start is common; then the baseline walks 11 mm a step and the candidate 1 mm. WebP is lossy.
    assert abs(left[0] - right[0]) < 3
    assert left[10] - left[0] == pytest.approx(500 * 0.11, abs=6)
    assert right[10] - right[0] == pytest.approx(500 * 0.01, abs=6)


def test_success_is_ticked_from_its_frame_on(result: dict[str, Any], policies: dict[str, Any]) -> None:
    (video,) = record_discordant(result, count=1, sources=policies).videos
    corner = frames(video)[:, 8:28, EDGE - 30 : EDGE - 8].astype(float)
    ticked = np.ptp(corner.reshape(video.frames, -1), axis=1) > 100
    assert ticked.tolist() == [number >= video.first_success for number in range(video.frames)]
    assert video.poster == video.first_success
    other = frames(video)[:, 8:28, 2 * EDGE - 30 : 2 * EDGE - 8].astype(float)
    assert np.ptp(other.reshape(video.frames, -1), axis=1).max() < 30


def test_lost_and_won_episodes_take_turns(result: dict[str, Any], policies: dict[str, Any]) -> None:
    entries = result["paired"]["discordant"]
    won = [{**entry, "index": 100 + entry["index"], "succeeds": "candidate"} for entry in entries]
    result["comparisons"][0]["paired"]["discordant"] = [*entries, *won]
    recorded = record_discordant(result, count=3, sources=policies)
    assert [video.index for video in recorded.videos] == [0, 100, 2]
    # What was recorded of the made-up ones is not what happens.
    assert [bool(video.note) for video in recorded.videos] == [False, True, False]


def test_a_long_episode_has_fewer_frames(result: dict[str, Any], policies: dict[str, Any], monkeypatch: Any) -> None:
    monkeypatch.setattr(videos, "MOST_FRAMES", 9)
    (video,) = record_discordant(result, count=1, sources=policies).videos
    assert video.frames == 9  # the start and every third of 24 steps
    assert video.poster == -(-video.first_success // 3)


def test_the_page_stays_small(result: dict[str, Any], policies: dict[str, Any], monkeypatch: Any) -> None:
    (video,) = record_discordant(result, count=1, sources=policies).videos
    monkeypatch.setattr(videos, "MOST_BYTES", int(1.5 * len(video.picture)))
    recorded = record_discordant(result, count=3, sources=policies)
    assert len(recorded.videos) == 1
    assert recorded.note == "2 more would make the page too large."


def test_none_is_made_where_none_is_asked_for_or_needed(result: dict[str, Any]) -> None:
    assert record_discordant(result, count=0).note == "No animation was asked for."
    result["comparisons"][0]["paired"]["discordant"] = []
    assert record_discordant(result, count=4) == Videos(note="")
    with pytest.raises(InvalidInputError, match="at least 0, got -1"):
        record_discordant(result, count=-1)


def test_another_policy_of_the_same_name_is_refused(
    result: dict[str, Any], policies: dict[str, Any], make_pusher: Make
) -> None:
    other = make_pusher("bent")
    other.gain.weight.data.mul_(2.0)
    with pytest.raises(InvalidInputError, match="policy bent must have the weights"):
        record_discordant(result, count=1, sources={**policies, "bent": other})


def test_what_is_not_at_hand_is_refused(
    result: dict[str, Any], policies: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnknownNameError, match="'bent'"):
        record_discordant(result, count=1)
    monkeypatch.setattr(PointWorld, "render_mode", None)
    with pytest.raises(InvalidInputError, match="must draw pictures"):
        record_discordant(result, count=1, sources=policies)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match=r"daptq\[report\]"):
        record_discordant(result, count=1, sources=policies)


def test_a_folder_that_is_gone_is_not_looked_for_elsewhere(result: dict[str, Any]) -> None:
    for entry in (*result["policies"], *result["comparisons"]):
        for key, value in entry.items():
            entry[key] = "no/folder" if value == "bent" else value
    with pytest.raises(InvalidInputError, match="no/folder: no such folder"):
        record_discordant(result, count=1)
