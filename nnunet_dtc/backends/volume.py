"""What the kernels work on: volumes. An image is one with a first axis of one voxel that never moves."""

from collections.abc import Sequence

from torch import Tensor

from nnunet_dtc.shifts import shift_scale


class Volume:
    """The low-resolution value as a volume.

    Attributes:
        axes: 2 or 3, of the value itself.
        channels: of the value.
        extents, stride, bounds: for three axes: voxels, output voxels per voxel, and the longest shift in voxels.
    """

    def __init__(self, value: Tensor, stride: Sequence[int], receptive_field: float) -> None:
        _, self.channels, *sizes = value.shape
        self.axes = len(sizes)
        missing = 3 - self.axes
        self.extents = (1,) * missing + tuple(sizes)
        self.stride = (1,) * missing + tuple(stride)
        self.bounds = [0.0] * missing + [float(shift_scale(receptive_field, size)) for size in sizes]
