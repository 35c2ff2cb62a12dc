"""What the kernels work on: volumes. An image is one with a first axis of one voxel that never moves."""

from collections.abc import Sequence

from torch import Tensor

from nnunet_dtc.ops.deformation import Deformation


class Volume:
    """The low-resolution value as a volume.

    Attributes:
        axes: 2 or 3, of the value itself.
        channels: channels of the value.
        extents, stride, bounds: for three axes: voxels, output voxels per voxel, and lambda of equation 1 in voxels,
            which is the longest shift if shifts are bounded.
    """

    def __init__(self, value: Tensor, stride: Sequence[int], deformation: Deformation) -> None:
        _, self.channels, *sizes = value.shape
        self.axes = len(sizes)
        missing = 3 - self.axes
        self.extents = (1,) * missing + tuple(sizes)
        self.stride = (1,) * missing + tuple(stride)
        self.bounds = [0.0] * missing + [float(deformation.scale(size)) for size in sizes]
