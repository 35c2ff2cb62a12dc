"""The states of coordinates as sentences."""

from collections.abc import Callable, Sequence

from nnunet_dtc.ops.coordinates import (
    SATURATED_OFFSET,
    WEIGHT_NEAR_0,
    WEIGHT_NEAR_1,
    AxisStatistics,
    StageStatistics,
)

__all__ = ["describe"]


def describe(stages: Sequence[StageStatistics]) -> list[str]:
    """A sentence for each state of each stage, with the axes that have it; one sentence if no axis has a state."""
    if stages and all(stage.deformation.receptive_field == 0 for stage in stages):
        return ["The receptive field is 0: no sample is shifted, this is the control with the same parameters."]
    lines = []
    for stage in stages:
        for state, explain in _SENTENCES.items():
            axes = [axis for axis in stage.axes if state in axis.states]
            if axes:
                lines.append(f"S{stage.title[1:]}, {stage.block}, {_axes(axes)}: {explain(axes)}")
    return lines or ["No shift is constant, and no offset or weight is saturated at most positions."]


def _axes(axes: Sequence[AxisStatistics]) -> str:
    return f"{'axis' if len(axes) == 1 else 'axes'} {_listed([axis.axis for axis in axes])}"


def _percent(values: Sequence[float]) -> str:
    return _listed([f"{100 * value:.0f} %" for value in values])


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


_SENTENCES: dict[str, Callable[[Sequence[AxisStatistics]], str]] = {
    "not finite": lambda _axes: "the coordinates are NaN or infinite; the training has diverged.",
    "constant": lambda axes: (
        f"the shift is the same at all positions ({_listed([f'{axis.mean_mm:.2g} mm' for axis in axes])}): "
        "no deformation is learned."
    ),
    "offset_saturated": lambda axes: (
        f"the offset is saturated (absolute tanh above {SATURATED_OFFSET}) at "
        f"{_percent([axis.offset_saturated for axis in axes])} of the positions, where its gradient almost vanishes."
    ),
    "weight_at_0": lambda axes: (
        f"the weight is saturated at 0 (below {WEIGHT_NEAR_0}) at {_percent([axis.weight_at_0 for axis in axes])} of "
        "the positions, where the shift almost vanishes."
    ),
    "weight_at_1": lambda axes: (
        f"the weight is saturated at 1 (above {WEIGHT_NEAR_1}) at {_percent([axis.weight_at_1 for axis in axes])} of "
        "the positions, where it no longer modulates the offset."
    ),
    "single": lambda _axes: "the map has one voxel along it, so a shift has no effect.",
}
