"""The states of coordinates in sentences."""

from collections.abc import Sequence

from nnunet_dtc.ops.coordinates import OPEN_WEIGHT, SATURATED_OFFSET, SHUT_WEIGHT, AxisNumbers, StageNumbers

__all__ = ["describe"]


def describe(stages: Sequence[StageNumbers]) -> list[str]:
    """Plain sentences that name every axis that is dead, saturated, shut or open; one that says so where none is."""
    lines = []
    if stages and all(stage.deformation.receptive_field == 0 for stage in stages):
        return ["The receptive field is 0: no sample is shifted, this is the control with the same parameters."]
    for stage in stages:
        for state, what in _SENTENCES.items():
            axes = [axis for axis in stage.axes if state in axis.states]
            if axes:
                subject = f"{stage.title[0].upper()}{stage.title[1:]}, {stage.block}, {_axes(axes)}"
                lines.append(f"{subject}: {what(axes)}")
    return lines or ["No coordinate is dead, saturated, shut or open at most positions."]


def _axes(axes: Sequence[AxisNumbers]) -> str:
    names = [axis.axis for axis in axes]
    if len(names) == 1:
        return f"axis {names[0]}"
    return f"axes {', '.join(names[:-1])} and {names[-1]}"


def _percent(values: Sequence[float]) -> str:
    return " and ".join(f"{100 * value:.0f} %" for value in values)


_SENTENCES = {
    "not finite": lambda _axes: "not finite: the coordinates are NaN or infinite; the training has diverged.",
    "dead": lambda axes: (
        f"dead, every sample has the same shift ({' and '.join(f'{axis.mean_mm:.2g} mm' for axis in axes)} long): "
        "no deformation is learned there."
    ),
    "saturated": lambda axes: (
        f"saturated, the offset is at its limit (tanh beyond {SATURATED_OFFSET}) at "
        f"{_percent([axis.saturated for axis in axes])} of the positions, where it hardly learns any more."
    ),
    "shut": lambda axes: (
        f"shut, the weight is below {SHUT_WEIGHT} at {_percent([axis.shut for axis in axes])} of the positions, "
        "where the offset hardly counts."
    ),
    "open": lambda axes: (
        f"open, the weight is above {OPEN_WEIGHT} at {_percent([axis.open for axis in axes])} of the positions, "
        "where it no longer chooses."
    ),
    "single": lambda _axes: "the map has one voxel along it, so a shift changes nothing.",
}
