"""The rules for arguments that modules and functions share: strides, counts, and tensors that fit them."""

from collections.abc import Sequence

from torch import Tensor


def check_stride(stride: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """The stride as a tuple, one per axis; ValueError where it is not, or a stride is not an integer >= 1."""
    steps = tuple(stride) if hasattr(stride, "__iter__") else (stride,) * axes
    if len(steps) != axes:
        raise ValueError(f"stride must have one entry per spatial axis ({axes}), got {stride=}")
    if not all(hasattr(step, "__index__") for step in steps):
        raise ValueError(f"stride must be integers, got {stride=}")
    steps = tuple(int(step) for step in steps)
    if any(step < 1 for step in steps):
        raise ValueError(f"stride must be positive on every axis, got {stride=}")
    return steps


def check_count(name: str, count: int) -> int:
    """The count; ValueError where it is not a positive integer."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"{name} must be a positive integer, got {name}={count!r}")
    return count


def check_value(value: Tensor, stride: int | Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The stride as a tuple, and the sizes of the result, (S_1 * stride_1, ..).

    ValueError where ``value`` is not (N, C, S_1, .., S_g) with g = 2 or 3, or where the stride does not fit it;
    TypeError where it is not floating.
    """
    if value.ndim not in (4, 5):
        raise ValueError(f"value must be (N, C, S_1, .., S_g) with 2 or 3 axes, got {tuple(value.shape)}")
    check_floating("value", value)
    stride = check_stride(stride, value.ndim - 2)
    return stride, tuple(size * step for size, step in zip(value.shape[2:], stride, strict=True))


def check_fits(name: str, tensor: Tensor, rule: str, expected: Sequence[int]) -> None:
    """ValueError, with the rule, where the tensor has not the expected shape; TypeError where it is not floating."""
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"{name} must be {rule} = {tuple(expected)}, got {tuple(tensor.shape)}")
    check_floating(name, tensor)


def check_floating(name: str, tensor: Tensor) -> None:
    """TypeError where the tensor is not floating."""
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be a floating tensor, got {tensor.dtype}")


def times(sizes: Sequence[int]) -> str:
    """Sizes as messages and reports show them, such as ``4 x 12 x 8``."""
    return " x ".join(map(str, sizes))
