"""Discordant episodes: which one policy solves and the other does not, as a list and side by side as animations.

An animation is one picture with all its frames on top of each other, moved by CSS: it starts paused, plays and pauses
at the press of a button, and runs no script.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape

from daptq.report.films import Film, Filming
from daptq.report.markup import Json, Policies, absent, count_of, note, section, table, task_name
from daptq.report.verdict import FAIL, PASS, symbol

_OPEN_UP_TO = 12


def episodes_section(result: Json, policies: Policies, filming: Filming) -> str:
    """The discordant episodes of every comparison."""
    parts = []
    for number, comparison in enumerate(result["comparisons"]):
        if comparison["paired"] is None:
            continue
        parts.append(f"<h3>{policies.label(comparison['policy'])}</h3>{_listed(comparison, policies)}")
        films = [film for film in filming.films if film.policy == comparison["policy"]]
        shown = [_film(film, policies, f"film-{number}-{place}") for place, film in enumerate(films)]
        if shown:
            parts.append(f'<div class="films">{"".join(shown)}</div>')
    if not parts:
        parts = [absent("No pair of whole episodes was run, so no episode is discordant.")]
    elif filming.note:
        parts.append(absent(filming.note))
    return section("episodes", "Discordant episodes", "".join(parts))


def _listed(comparison: Json, policies: Policies) -> str:
    paired, against = comparison["paired"], policies.labels[comparison["against"]]
    lost, won = paired["only_baseline"], paired["only_candidate"]
    if lost + won == 0:
        return absent(f"None: in each of {count_of(paired['n'], 'episode')} both succeed or both fail.")
    entries = paired.get("discordant")
    summary = f"{lost} lost, {won} won"
    if entries is None:
        numbers = (
            f"Lost: {_numbers(paired['only_baseline_episodes'])}. Won: {_numbers(paired['only_candidate_episodes'])}."
        )
        return f"<p>{summary}. {numbers}</p>" + absent(
            "Their seeds and times were not kept by the version that ran them."
        )
    rows = [
        (
            str(entry["index"]),
            escape(task_name(entry["task"])),
            str(entry["seed"]),
            "lost" if entry["succeeds"] == "baseline" else "won",
            escape(against) if entry["succeeds"] == "baseline" else policies.label(comparison["policy"]),
            str(entry["first_success"]),
        )
        for entry in sorted(entries, key=lambda entry: (entry["succeeds"] != "baseline", entry["index"]))
    ]
    caption = f"Episodes in which just one of the two succeeds: {summary}"
    listed = table(caption, ("episode", "task", "seed", "outcome", "succeeds", "after step"), rows)
    opened = " open" if len(rows) <= _OPEN_UP_TO else ""
    return f"<details{opened}><summary>{summary}</summary>{listed}</details>"


def _numbers(indices: Sequence[int]) -> str:
    return ", ".join(map(str, indices)) or "none"


def _film(film: Film, policies: Policies, name: str) -> str:
    """One animation with what is left and right in it."""
    lost = film.succeeds == "baseline"
    sides = ((film.against, lost), (film.policy, not lost))
    heads = "".join(
        f"<span>{symbol(PASS if succeeds else FAIL)}<span>{policies.label(policy)}<small>"
        f"{f'succeeds after step {film.first_success}' if succeeds else 'does not succeed'}</small></span></span>"
        for policy, succeeds in sides
    )
    words = (
        f"{film.frames} pictures of episode {film.index}, from the same start with the same noise: left "
        f"{policies.labels[film.against]}, right {policies.labels[film.policy]}"
    )
    data = b64encode(film.picture).decode()
    delay = film.seconds * (film.poster + 0.5) / film.frames
    motion = f"--duration:{film.seconds:.2f}s;--frames:{film.frames};--delay:-{delay:.2f}s"
    return (
        f'<figure class="film" style="{motion}"><figcaption>Episode {film.index}, {escape(task_name(film.task))}, '
        f'<b>{"lost" if lost else "won"}</b></figcaption><div class="sides">{heads}</div>'
        f'<input type="checkbox" id="{name}" class="play"><div class="screen"><img alt="{escape(words)}" '
        f'src="data:image/webp;base64,{data}" width="{film.width}" height="{film.frames * film.height}"></div>'
        f'<div class="progress"><i></i></div><label for="{name}"><span class="to-play">Play</span>'
        f'<span class="to-pause">Pause</span></label>{note(film.note) if film.note else ""}</figure>'
    )
