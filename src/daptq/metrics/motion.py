"""How smoothly the robot moves: metrics of one end-effector path, sampled once per control step.

`METRICS` lists them with their units and definitions.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from daptq.errors import InvalidInputError
from daptq.metrics.motion_metric import MotionMetric

Array = NDArray[np.float64]

# Of the sampling frequency: the upper half of the frequencies that a sampled path can hold is the oscillation that a
# controller cannot follow.
CUTOFF = 0.25
_SPARC_AMPLITUDE = 0.05
_SPARC_PADDING = 4


def rms_jerk(positions: Float[np.ndarray, "steps 3"], frequency: float) -> float:
    """Root mean square of the third time derivative, by third differences.

    Args:
        positions: float64 (steps, 3) [m], at least 4 steps.
        frequency: Control steps per second [Hz].

    Returns:
        Jerk [m/s^3].

    Raises:
        InvalidInputError: The path is too short.
    """
    jerk = _differences(positions, 3) * frequency**3
    return float(np.sqrt(np.mean(np.sum(np.square(jerk), axis=-1))))


def path_length(positions: Float[np.ndarray, "steps 3"]) -> float:
    """Sum of the distances between consecutive positions [m]; arguments and errors as in `rms_jerk`."""
    return float(np.sum(np.linalg.norm(_differences(positions, 1), axis=-1)))


def spectral_arc_length(positions: Float[np.ndarray, "steps 3"], frequency: float) -> float:
    """SPARC of the speed profile (Balasubramanian et al. 2015, J. NeuroEng. Rehabil. 12:112): smooth is close to 0.

    Minus the length of the curve of the normalised amplitude spectrum over the frequency, from 0 to the last frequency
    whose amplitude is at least 5 % of that at 0. The frequency axis is divided by the largest one, so a path has the
    same value however fast it is sampled in between.

    Args:
        positions: float64 (steps, 3) [m], at least 2 steps.
        frequency: Control steps per second [Hz].

    Returns:
        A number below 0 without unit; 0 for a robot at rest.

    Raises:
        InvalidInputError: The path is too short.
    """
    speed = np.linalg.norm(_differences(positions, 1), axis=-1) * frequency
    length = 2 ** (int(np.ceil(np.log2(len(speed)))) + _SPARC_PADDING)
    amplitude = np.abs(np.fft.rfft(speed, length))
    if amplitude[0] == 0.0:
        return 0.0
    amplitude /= amplitude[0]
    last = int(np.flatnonzero(amplitude >= _SPARC_AMPLITUDE)[-1])
    if last == 0:
        return 0.0
    steps = np.diff(np.linspace(0.0, 1.0, last + 1))
    return -float(np.sum(np.hypot(steps, np.diff(amplitude[: last + 1]))))


def high_frequency_share(positions: Float[np.ndarray, "steps 3"]) -> float:
    """Share of the velocity's energy, its mean removed, above a quarter of the sampling frequency.

    Args:
        positions: float64 (steps, 3) [m], at least 2 steps.

    Returns:
        Fraction in [0, 1]; 0 for a constant velocity.

    Raises:
        InvalidInputError: The path is too short.
    """
    velocity = _differences(positions, 1)
    spectrum = np.square(np.abs(np.fft.rfft(velocity - velocity.mean(axis=0), axis=0))).sum(axis=-1)
    frequencies = np.fft.rfftfreq(len(velocity))
    # Both halves of the spectrum of a real signal carry the same energy; 0 and the Nyquist frequency come once.
    spectrum[(frequencies > 0.0) & (frequencies < 0.5)] *= 2.0
    total = float(spectrum.sum())
    # Rounding of the positions alone makes an energy of about (number of steps x eps x largest coordinate)^2.
    rounding = len(velocity) * float(np.abs(positions).max()) * np.finfo(np.float64).eps
    return float(spectrum[frequencies > CUTOFF].sum()) / total if total > (4.0 * rounding) ** 2 else 0.0


def chunk_jump(positions: Float[np.ndarray, "steps 3"], chunk_steps: int) -> float | None:
    """How much rougher the path is where a new chunk begins than inside one.

    Args:
        positions: float64 (steps, 3) [m], positions[k] after control step k.
        chunk_steps: Control steps that are executed of every chunk.

    Returns:
        Ratio of the root mean square change of velocity at the first step of a chunk to that at all other steps, 1
        where boundaries do not show; None when there are not both kinds of steps, or the inside does not change.

    Raises:
        InvalidInputError: The path is too short.
    """
    change = np.sum(np.square(_differences(positions, 2)), axis=-1)  # change[k]: velocity of step k + 2 against k + 1
    boundary = (np.arange(len(change)) + 2) % chunk_steps == 0
    if not boundary.any() or boundary.all() or not change[~boundary].any():
        return None
    return float(np.sqrt(change[boundary].mean() / change[~boundary].mean()))


def _differences(positions: Float[np.ndarray, "steps 3"], order: int) -> Array:
    if len(positions) <= order:
        message = f"positions must have at least {order + 1} steps, got {len(positions)}."
        raise InvalidInputError(message + " Record a longer path.")
    return np.diff(np.asarray(positions, dtype=np.float64), n=order, axis=0)


METRICS: dict[str, MotionMetric] = {
    "rms_jerk": MotionMetric(
        title="jerk, RMS",
        unit="m/s\N{SUPERSCRIPT THREE}",
        definition="root mean square over an episode of the position's third difference, times the control frequency "
        "cubed",
        measure=lambda record, control: rms_jerk(record.motion.positions, control.frequency),
    ),
    "path_length": MotionMetric(
        title="path length",
        unit="m",
        definition="sum of the distances between consecutive positions",
        measure=lambda record, _: path_length(record.motion.positions),
    ),
    "spectral_arc_length": MotionMetric(
        title="smoothness, SPARC",
        unit="none",
        definition="SPARC (Balasubramanian et al. 2015) of the speed: minus the length of the curve of the normalised "
        "amplitude spectrum up to the last frequency that reaches 5 % of the amplitude at 0, both axes scaled to 1; "
        "smoother is closer to 0",
        measure=lambda record, control: spectral_arc_length(record.motion.positions, control.frequency),
        change="difference",
    ),
    "high_frequency_share": MotionMetric(
        title="oscillation",
        unit="fraction",
        definition="share of the velocity's spectral energy, mean removed, above a quarter of the control frequency",
        measure=lambda record, _: high_frequency_share(record.motion.positions),
        change="difference",
    ),
    "chunk_jump": MotionMetric(
        title="chunk jump",
        unit="ratio",
        definition="root mean square change of velocity at the first step of a chunk, divided by that at all other "
        "steps; 1 where boundaries do not show",
        measure=lambda record, control: chunk_jump(record.motion.positions, control.chunk_steps),
    ),
    "gripper_flips": MotionMetric(
        title="gripper flips",
        unit="count",
        definition="how often the commanded gripper changes between open and closed in an episode; means over "
        "episodes, since a median would hide flips in few of them",
        measure=lambda record, _: float(record.gripper_flips),
        change="difference",
        average="mean",
    ),
    "time_to_success": MotionMetric(
        title="time to success",
        unit="s",
        definition="control steps until the first success, divided by the control frequency; over episodes in which "
        "both succeed",
        measure=lambda record, control: (
            None if record.first_success is None else record.first_success / control.frequency
        ),
    ),
}
