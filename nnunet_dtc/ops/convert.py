"""``convert_dtc``: add a DTC branch to every upsampling of a network from any source."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from nnunet_dtc.ops.deformation import Deformation, Offset, Weight
from nnunet_dtc.ops.dtc import dtc_class, is_dtc

Network = TypeVar("Network", bound=nn.Module)
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d

_LINEAR_MODES = {"bilinear": 2, "trilinear": 3}


@overload
def convert_dtc(
    module: nn.ConvTranspose2d | nn.ConvTranspose3d | nn.Upsample,
    receptive_field: float = 2.0,
    example_input: Any = None,
    *,
    offset: Offset = "tanh",
    weight: Weight = "sigmoid",
) -> nn.Module: ...


@overload
def convert_dtc(
    module: Network,
    receptive_field: float = 2.0,
    example_input: Any = None,
    *,
    offset: Offset = "tanh",
    weight: Weight = "sigmoid",
) -> Network: ...


def convert_dtc(
    module: nn.Module,
    receptive_field: float = 2.0,
    example_input: Any = None,
    *,
    offset: Offset = "tanh",
    weight: Weight = "sigmoid",
) -> nn.Module:
    """Wrap every upsampling in ``module`` in a DTC block, which keeps it with its weights as the base.

    As torch's ``convert_sync_batchnorm``, the function changes ``module`` in place and returns it. If ``module`` is an
    upsampling itself, the new block is returned instead. It converts

    - every 2D and 3D transposed convolution whose kernel is its stride, without padding;
    - every bilinear and trilinear ``nn.Upsample`` with an integer ``scale_factor``. Such a module does not know its
      channels; they are taken from one run of the network with ``example_input`` (in eval mode, without gradients).

    All other modules stay as they are. A single warning lists the transposed convolutions, ``nn.Upsample`` and pixel
    shuffles that cannot be wrapped, each with the reason. Modules inside a DTC block are not converted, so a second
    call changes nothing. Calls of ``F.interpolate`` in a ``forward`` are not modules and cannot be converted.

    The new value convolutions are initialised as torch initialises convolutions. If your network has an initialisation
    of its own, apply it to ``block.value``, but not to ``block.coords``.

    Args:
        module: a network from any source.
        receptive_field: RF of section 3.2 for every block, in voxels of its input map, 0 to ``float("inf")``.
        example_input: a tensor, or a tuple of the arguments of ``module.forward``, of any size that the network takes.
        offset: "tanh" or "linear", see :func:`nnunet_dtc.deformable_upsample`.
        weight: "sigmoid", "linear" or "none", see :func:`nnunet_dtc.deformable_upsample`.

    Returns:
        ``module``, or the block that replaces it.

    Raises:
        ValueError: there is a linear ``nn.Upsample`` but no ``example_input`` (the message names the modules), or an
            argument is out of range. The module is then unchanged.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from nnunet_dtc import convert_dtc
        >>> network = nn.Sequential(
        ...     nn.Conv3d(1, 8, 3, padding=1), nn.ConvTranspose3d(8, 4, (1, 2, 2), (1, 2, 2)), nn.Conv3d(4, 2, 1)
        ... )
        >>> convert_dtc(network, receptive_field=4)[1].receptive_field
        4.0
        >>> network(torch.randn(1, 1, 3, 5, 7)).shape
        torch.Size([1, 2, 3, 10, 14])
    """
    deformation = Deformation(receptive_field, offset, weight)
    found = {id(site.module): site for site in _sites(module)}

    unknown = [site for site in found.values() if site.refusal is None and not site.arguments]
    if unknown and example_input is None:
        names = ", ".join(repr(site.name) if site.name else "the module itself" for site in unknown)
        raise ValueError(f"an nn.Upsample does not know its channels: pass example_input=... to convert {names}")
    if unknown:
        _observe_channels(module, unknown, example_input)

    if not found and not any(is_dtc(mod) for mod in module.modules()):
        warnings.warn("convert_dtc found no upsampling that it knows, nothing is converted", stacklevel=2)
    refused = [f"{site.name or 'the module itself'} ({site.refusal})" for site in found.values() if site.refusal]
    if refused:
        warnings.warn("convert_dtc left these upsamplings as they are: " + "; ".join(refused), stacklevel=2)

    blocks = {key: _wrap(site, deformation) for key, site in found.items() if site.refusal is None}
    if id(module) in blocks:
        return blocks[id(module)]
    for parent in [parent for _, parent in _outside_blocks(module)]:
        # not named_children(), which omits the second name of a module
        for name, child in list(parent.named_modules(remove_duplicate=False)):
            if name and "." not in name and id(child) in blocks:
                setattr(parent, name, blocks[id(child)])
    return module


@dataclass
class _Site:
    """An upsampling in the network, and what is known about it.

    Attributes:
        name: dotted name in the network.
        module: the upsampling.
        stride: output elements per input element and axis.
        arguments: channels, device and dtype of the block; empty while they are unknown.
        refusal: the reason why it cannot be wrapped.
        seen: the numbers of channels of its inputs.
    """

    name: str
    module: nn.Module
    stride: tuple[int, ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)
    refusal: str | None = None
    seen: set[int] = field(default_factory=set)


def _block_arguments(in_channels: int, out_channels: int, like: Tensor) -> dict[str, Any]:
    return {"in_channels": in_channels, "out_channels": out_channels, "device": like.device, "dtype": like.dtype}


def _outside_blocks(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Names and modules as of ``named_modules``, without DTC blocks and what is inside them."""
    visited: set[int] = set()
    stack = [(prefix, module)]
    while stack:
        name, current = stack.pop()
        if id(current) in visited or is_dtc(current):
            continue
        visited.add(id(current))
        yield name, current
        children = [(f"{name}.{child}" if name else child, mod) for child, mod in current.named_children()]
        stack.extend(reversed(children))


def _sites(module: nn.Module) -> Iterator[_Site]:
    for name, mod in _outside_blocks(module):
        if isinstance(mod, Transposed):
            yield _transposed_site(name, mod)
        elif isinstance(mod, nn.Upsample):
            yield _upsample_site(name, mod)
        elif isinstance(mod, nn.PixelShuffle):
            yield _Site(name, mod, refusal="a pixel shuffle upsamples only together with the convolution before it")


def _transposed_site(name: str, conv: Transposed) -> _Site:
    site = _Site(name, conv, tuple(conv.stride), _block_arguments(conv.in_channels, conv.out_channels, conv.weight))
    kernel = tuple(conv.kernel_size)
    if isinstance(conv, nn.ConvTranspose1d):
        site.refusal = "DTC is for 2D and 3D, this is ConvTranspose1d"
    elif is_lazy(conv.weight):
        site.refusal = "it is lazy: run the network once before converting it"
    elif kernel != site.stride or any(conv.padding) or any(conv.output_padding) or set(conv.dilation) != {1}:
        site.refusal = (
            f"the kernel must be the stride, without padding; got kernel_size={kernel}, stride={site.stride}, "
            f"padding={tuple(conv.padding)}, output_padding={tuple(conv.output_padding)}, "
            f"dilation={tuple(conv.dilation)}"
        )
    elif set(site.stride) == {1}:
        site.refusal = "it does not upsample: its stride is 1 on every axis"
    return site


def _upsample_site(name: str, upsample: nn.Upsample) -> _Site:
    site = _Site(name, upsample)
    axes = _LINEAR_MODES.get(upsample.mode)
    factors = upsample.scale_factor
    if axes is None:
        site.refusal = f"only bilinear and trilinear interpolation can be wrapped, got mode={upsample.mode!r}"
    elif factors is None:
        site.refusal = f"it has a fixed size and no scale_factor, got size={upsample.size}"
    else:
        factors = tuple(factors) if isinstance(factors, Sequence) else (factors,) * axes
        if len(factors) != axes or any(factor != int(factor) or factor < 1 for factor in factors):
            site.refusal = f"scale_factor must be whole numbers >= 1, one per axis, got {upsample.scale_factor}"
        site.stride = tuple(int(factor) for factor in factors)
        if site.refusal is None and set(site.stride) == {1}:
            site.refusal = "it does not upsample: its scale_factor is 1 on every axis"
    return site


def _observe_channels(module: nn.Module, sites: list[_Site], example_input: Any) -> None:
    """Run the network once to find the channels, device and dtype of the input of each site."""

    def observe(site: _Site) -> RemovableHandle:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs["input"]
            site.seen.add(x.shape[1])
            site.arguments = _block_arguments(x.shape[1], x.shape[1], x)

        return site.module.register_forward_pre_hook(hook, with_kwargs=True)

    modes = {mod: mod.training for mod in module.modules()}
    hooks = [observe(site) for site in sites]
    try:
        module.eval()
        with torch.no_grad():
            module(*example_input) if isinstance(example_input, tuple | list) else module(example_input)
    finally:
        for hook in hooks:
            hook.remove()
        for mod, training in modes.items():
            mod.training = training
    for site in sites:
        if not site.seen:
            site.refusal = "the example input does not reach it"
        elif len(site.seen) > 1:
            site.refusal = f"it is used with different channels, {sorted(site.seen)}"


def _wrap(site: _Site, deformation: Deformation) -> nn.Module:
    block = dtc_class(len(site.stride))(stride=site.stride, base=site.module, **asdict(deformation), **site.arguments)
    return block.train(site.module.training)
