"""Laws of early stopping: it never looks ahead, looks at whole rounds, and does not punish a winner."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from daptq.statistics.stopping import EarlyStop, looks

OUTCOMES = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=60, max_size=60)
MARGINS = st.floats(0.02, 0.6)


@given(outcomes=OUTCOMES, later=OUTCOMES, margin=MARGINS)
@settings(max_examples=30, deadline=None)
def test_a_decision_does_not_depend_on_what_comes_after_it(
    outcomes: list[tuple[bool, bool]], later: list[tuple[bool, bool]], margin: float
) -> None:
    stop = EarlyStop(margin=margin, looks=looks(60, 4))
    decision = stop.decide(outcomes)
    assert decision.settled == (decision.low > -margin or decision.high < -margin)
    assert decision.settled or decision.pairs == 60
    seen = outcomes[: decision.pairs]
    assert stop.decide(seen) == decision
    if decision.settled:
        assert stop.decide(seen + later[decision.pairs :]) == decision


@given(outcomes=OUTCOMES, margin=MARGINS)
@settings(max_examples=30, deadline=None)
def test_a_candidate_that_only_wins_is_never_inferior(outcomes: list[tuple[bool, bool]], margin: float) -> None:
    winning = [(baseline and candidate, candidate) for baseline, candidate in outcomes]
    assert EarlyStop(margin=margin, looks=looks(60, 4)).decide(winning).verdict != "inferior"


@given(pairs=st.integers(1, 40), tasks=st.integers(1, 30))
def test_looks_end_complete_rounds_and_the_plan_at_most(pairs: int, tasks: int) -> None:
    found = list(looks(pairs * tasks, tasks))
    assert found
    assert all(look % tasks == 0 for look in found)
    assert found[-1] <= pairs * tasks
