"""The deformable branch of DTC: low-resolution features, sampled at learned positions.

Sun et al., arXiv:2601.17939, section 3.1, equations 1 and 2. ``nnunet_dtc.ops.deformation`` defines the positions of
the samples, and ``nnunet_dtc.ops.backends`` computes the samples on a device. Decisions that the paper leaves open
(ours): ``align_corners=False`` and ``padding_mode="border"``. At a voxel centre, where linear interpolation is not
differentiable, the gradient is that of the side with the higher index (on the last voxel of an axis it is zero).
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
    """Sample ``value`` at learned positions, with ``stride`` samples per voxel along each axis.

    With ``g`` spatial axes, in tensor order (D, H, W), the position of output element ``o`` on axis ``a`` is::

        shift_a    = (RF / 4) * tanh(coords[a]) * sigmoid(coords[g + a])         voxels of the input map
        position_a = (o_a + 1/2) / stride_a - 1/2 + shift_a                      clamped to [0, S_a - 1]

    and the result is the linear interpolation of ``value`` at these positions. With ``coords`` of zeros, or with a
    receptive field of 0, it equals ``F.interpolate(value, mode="bilinear" or "trilinear", align_corners=False)``.

    Args:
        value (Tensor[N, C, S_1, .., S_g]): features at low resolution, g = 2 or 3, any floating dtype.
        coords (Tensor[N, 2 * g, S_1 * stride_1, .., S_g * stride_g]): raw (before the activations) offsets in
            channels 0 to g - 1 and weights in channels g to 2 g - 1; with ``weight="none"`` the g offsets alone.
        stride: output voxels per input voxel, one integer or one per axis, each >= 1.
        receptive_field: RF of section 3.2 in voxels of the input map, 0 to ``float("inf")``. No shift is longer than
            RF / 4 voxels (for infinity S_a / 2), unless ``offset`` or ``weight`` is "linear".
        base (Tensor[N, C, S_1 * stride_1, .., S_g * stride_g], optional): the upsampling of figure 3a, to which the
            samples are added. Adding it here costs less than adding it afterwards.
        offset: "tanh" as in equation 1, or "linear" for table 4's rows without tanh: a shift without bound.
        weight: "sigmoid" as in equation 1, "linear" for table 4's rows without sigmoid (a shift without
            bound), "none" for its rows without weight.

    Returns:
        Tensor[N, C, S_1 * stride_1, .., S_g * stride_g]: the samples in the dtype of ``value``, or, with ``base``,
        their sum in the dtype of ``base``.

    Raises:
        TypeError: ``value``, ``coords`` or ``base`` is not a floating tensor.
        ValueError: a size, the stride, the receptive field or a variant is not as described.
        NotImplementedError: second derivatives were requested.

    Note:
        :mod:`nnunet_dtc.ops.backends` lists the backends and how one is chosen. On CUDA the gradient with respect to
        ``value`` is summed with atomic additions where shifts are long (in 3D from about RF 4 on) and in the reference
        backend; it is then not bit-identical from run to run. With every backend a shift of NaN counts as zero (ours),
        an infinite shift reaches the end of the map, and the gradient of such coordinates is zero, so that a training
        that diverges ends with a loss of NaN and not with a crash.

    Example:
        Coordinates of zero give linear interpolation. An offset and a weight that are both saturated shift every sample
        by the bound, RF / 4, which is half a voxel here:

        >>> import torch
        >>> from nnunet_dtc import deformable_upsample
        >>> value = torch.tensor([0.0, 1, 2, 3]).view(1, 1, 1, 4)
        >>> coords = torch.zeros(1, 4, 1, 8)  # offsets along H and W, then weights along H and W
        >>> deformable_upsample(value, coords, stride=(1, 2)).flatten().tolist()
        [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]
        >>> coords[:, 1::2] = 100  # along W
        >>> deformable_upsample(value, coords, stride=(1, 2)).flatten().tolist()
        [0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0, 3.0]
    """
    if value.ndim not in (4, 5):
        raise ValueError(f"value must be (N, C, H, W) or (N, C, D, H, W), got {tuple(value.shape)=}")
    steps = check_stride(stride, value.ndim - 2)
    return upsample_checked(base, value, coords, steps, Deformation(receptive_field, offset, weight))


def upsample_checked(
    base: Tensor | None, value: Tensor, coords: Tensor, stride: tuple[int, ...], deformation: Deformation
) -> Tensor:
    """Check the tensors and compute `deformable_upsample`, for a stride and a deformation that are already checked."""
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
