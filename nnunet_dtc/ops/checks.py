"""Checks of arguments that several modules and functions have: strides, counts, and the shapes and dtypes of tensors.

Each raises an error with the rule and the value that was given.
"""

from collections.abc import Sequence

from torch import Tensor


def check_stride(stride: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """Return the stride as a tuple with one integer per axis.

    Raises:
        ValueError: it has another number of entries, or an entry is not an integer >= 1.

    Example:
        >>> check_stride(2, axes=3)
        (2, 2, 2)
        >>> check_stride((1, 2, 2), axes=3)
        (1, 2, 2)
    """
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
    """Return ``count``; raise ValueError if it is not a positive integer."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"{name} must be a positive integer, got {name}={count!r}")
    return count


def check_value(value: Tensor, stride: int | Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Check features that are to be upsampled.

    Args:
        value (Tensor[N, C, S_1, .., S_g]): g = 2 or 3, floating.
        stride: output elements per input element, one integer or one per axis.

    Returns:
        The stride as a tuple, and the size of the result, (S_1 * stride_1, .., S_g * stride_g).

    Raises:
        ValueError: ``value`` has another number of axes, or the stride does not fit it.
        TypeError: ``value`` is not floating.
    """
    if value.ndim not in (4, 5):
        raise ValueError(f"value must be (N, C, S_1, .., S_g) with 2 or 3 axes, got {tuple(value.shape)}")
    check_floating("value", value)
    steps = check_stride(stride, value.ndim - 2)
    return steps, tuple(size * step for size, step in zip(value.shape[2:], steps, strict=True))


def check_features(name: str, x: Tensor, channels: int, axes: int) -> None:
    """Check the input of the module ``name``.

    Raises:
        ValueError: ``x`` is not (N, channels, S_1, .., S_g) with that number of axes.
        TypeError: ``x`` is not floating.
    """
    if x.ndim != axes + 2 or x.shape[1] != channels:
        shape = ", ".join(["N", str(channels), *"DHW"[-axes:]])
        raise ValueError(f"{name} takes ({shape}), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{name} takes a floating tensor, got {x.dtype}")


def check_fits(name: str, tensor: Tensor, rule: str, expected: Sequence[int]) -> None:
    """Check an argument against the shape ``expected``, which the message explains by ``rule``.

    Raises:
        ValueError: the tensor has another shape.
        TypeError: it is not floating.
    """
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"{name} must be {rule} = {tuple(expected)}, got {tuple(tensor.shape)}")
    check_floating(name, tensor)


def check_floating(name: str, tensor: Tensor) -> None:
    """Raise TypeError if the tensor is not floating."""
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be a floating tensor, got {tensor.dtype}")


def times(sizes: Sequence[int]) -> str:
    """Format sizes for messages and reports.

    Example:
        >>> times((4, 12, 8))
        '4 x 12 x 8'
    """
    return " x ".join(map(str, sizes))
