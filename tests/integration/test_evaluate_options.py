"""`daptq evaluate`: the planner, and options that cannot stand together."""

from __future__ import annotations

from tests.integration.conftest import Refused, Run


def test_the_planner_prints_pairs_by_how_often_policies_disagree(run: Run) -> None:
    result = run("evaluate", "--plan", "--margin", "0.05")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines() if "%" in line and line.startswith("  ")]
    needed = [int(pairs) for _, pairs in rows]
    assert len(needed) >= 4
    assert needed == sorted(needed)
    # The normal approximation: n is about (1.96 + 1.28)^2 discordant / margin^2.
    share = float(rows[-1][0].rstrip("%")) / 100
    assert 0.9 < needed[-1] / (3.2415**2 * share / 0.05**2) < 1.1


def test_options_that_cannot_stand_together_are_refused(run: Run, refused: Refused) -> None:
    for arguments, said in (
        (["evaluate"], "POLICY must be a name or a folder"),
        (["evaluate", "--plan"], "--plan must come with --margin"),
        (["evaluate", "reference", "--plan", "--margin", "0.05"], "--plan must come with --margin"),
        (["evaluate", "reference", "--margin", "0.05"], "--margin must come with --plan"),
        (["evaluate", "reference", "--gate", "margin=0.05"], "--gate must come with --against"),
        (
            ["evaluate", "reference", "--against", "x", "--gate", "drift=1", "--stop-early"],
            "--stop-early must come with",
        ),
        (["evaluate", "reference", "--stop-early"], "--stop-early must come with --gate margin=0.05"),
        (["evaluate", "reference", "--resume"], "--resume must come with --json"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert said in result.stderr
    refused(["evaluate", "reference", "--against", "reference", "--gate", "speed=1"], "gate must name margin")
