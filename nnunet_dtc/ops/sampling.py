"""The deformable branch of DTC: the low-resolution features, sampled where their coordinates say.

Sun et al., arXiv:2601.17939, section 3.1, equations 1 and 2. ``nnunet_dtc.ops.deformation`` has the positions of the
samples, ``nnunet_dtc.ops.backends`` the ways to compute them on a device. Decisions that the paper leaves open (ours):
``align_corners=False`` and ``padding_mode="border"``. Where linear interpolation is not differentiable, at a position
on a voxel's centre, the gradient is that of the side with the higher index (on the last voxel of an axis: zero).
"""

from collections.abc import Sequence

from torch import Tensor

from nnunet_dtc.ops.backends import upsample
from nnunet_dtc.ops.checks import check_stride
from nnunet_dtc.ops.deformation import Deformation, Offset, Weight


def deformable_upsample(
    value: Tensor,
    coords: Tensor,
    stride: int | Sequence[int],
    receptive_field: float = 2.0,
    *,
    base: Tensor | None = None,
    offset: Offset = "tanh",
    weight: Weight = "sigmoid",
) -> Tensor:
    """Sample ``value`` at learned positions, ``stride`` times as densely as it is given.

    With ``g`` spatial axes, in tensor order (D, H, W), the position of output element ``o`` on axis ``a`` is::

        shift_a    = (RF / 4) * tanh(coords[a]) * sigmoid(coords[g + a])         voxels of the input map
        position_a = (o_a + 1/2) / stride_a - 1/2 + shift_a                      clamped to [0, S_a - 1]

    and the result is the linear interpolation of ``value`` there. With ``coords`` of zeros, or a receptive
    field of 0, that is ``F.interpolate(value, mode="bilinear" or "trilinear", align_corners=False)``.

    Args:
        value (Tensor[N, C, S_1, .., S_g]): features at low resolution, g = 2 or 3, any floating dtype.
        coords (Tensor[N, 2 * g, S_1 * stride_1, .., S_g * stride_g]): raw (before the activations) offsets in
            channels 0 to g - 1 and weights in channels g to 2 g - 1; with ``weight="none"`` the g offsets alone.
        stride: voxels of the output per voxel of the input, one number or one per axis, each >= 1.
        receptive_field: RF of section 3.2, in voxels of the input map, from 0 to ``float("inf")``. No shift is
            longer than RF / 4 voxels (for infinity: S_a / 2), unless ``offset`` or ``weight`` is "linear".
        base (Tensor[N, C, S_1 * stride_1, .., S_g * stride_g], optional): what the samples are added to, the
            upsampling of figure 3a. Adding it here costs less than adding it afterwards.
        offset: "tanh" as in equation 1, or "linear" for table 4's rows without tanh: a shift without bound.
        weight: "sigmoid" as in equation 1, "linear" for table 4's rows without sigmoid (a shift without
            bound), "none" for its rows without weight.

    Returns:
        Tensor[N, C, S_1 * stride_1, .., S_g * stride_g]: the samples in the dtype of ``value``, or their sum with
        ``base`` in the dtype of that.

    Raises:
        TypeError: ``value``, ``coords`` or ``base`` is not a floating tensor.
        ValueError: a size, the stride, the receptive field or a variant is not as described.
        NotImplementedError: second derivatives were asked for.

    Note:
        :mod:`nnunet_dtc.ops.backends` says which backend computes it. On CUDA the gradient with respect to ``value``
        sums with atomic additions where shifts are long (in 3D from about RF 4 on) and where the reference computes, so
        there it is not bit-identical from run to run. A shift that is NaN counts as zero (ours), one that is infinite
        reaches the end of the map, and the gradient of its coordinates is zero, with every backend. A training that
        diverges thus ends in a loss of NaN, and not in a crash.
    """
    if value.ndim not in (4, 5):
        raise ValueError(f"value must be (N, C, H, W) or (N, C, D, H, W), got {tuple(value.shape)=}")
    stride = check_stride(stride, value.ndim - 2)
    return upsample_checked(base, value, coords, stride, Deformation(receptive_field, offset, weight))


def upsample_checked(
    base: Tensor | None, value: Tensor, coords: Tensor, stride: tuple[int, ...], deformation: Deformation
) -> Tensor:
    """:func:`deformable_upsample` for a stride and a deformation that were checked before; it checks the tensors."""
    _check_tensors(value, coords, base, stride, deformation)
    return upsample(base, value, coords, stride, deformation)


def _check_tensors(
    value: Tensor, coords: Tensor, base: Tensor | None, stride: tuple[int, ...], deformation: Deformation
) -> None:
    if not value.is_floating_point() or not coords.is_floating_point():
        raise TypeError(f"value and coords must be floating tensors, got {value.dtype=} and {coords.dtype=}")
    axes = value.ndim - 2
    if any(size < 1 for size in value.shape[2:]):
        raise ValueError(f"value must have at least one voxel on every axis, got {tuple(value.shape)=}")
    out = tuple(size * step for size, step in zip(value.shape[2:], stride, strict=True))
    expected = (value.shape[0], deformation.channels(axes), *out)
    if tuple(coords.shape) != expected:
        raise ValueError(
            f"coords must be (N, {'g' if deformation.weight == 'none' else '2 * g'}, *(size * stride)) = {expected} "
            f"for value of {tuple(value.shape)} and {stride=}, got {tuple(coords.shape)}"
        )
    if value.device != coords.device:
        raise ValueError(f"value and coords must be on one device, got {value.device=} and {coords.device=}")
    if base is None:
        return
    if not base.is_floating_point():
        raise TypeError(f"base must be a floating tensor, got {base.dtype=}")
    if tuple(base.shape) != (*value.shape[:2], *out):
        raise ValueError(
            f"base must be (N, C, *(size * stride)) = {(*value.shape[:2], *out)} for value of {tuple(value.shape)} "
            f"and {stride=}, got {tuple(base.shape)}"
        )
    if base.device != value.device:
        raise ValueError(f"base and value must be on one device, got {base.device=} and {value.device=}")
