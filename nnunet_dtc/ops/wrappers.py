"""The wrappers of DistributedDataParallel and ``torch.compile`` around a network."""

from torch import nn

from nnunet_dtc.torch_internals import COMPILED_PREFIX, is_compiled


def unwrap(network: nn.Module) -> nn.Module:
    """The network without the wrappers of DistributedDataParallel and ``torch.compile``, in whatever order they are.

    Example:
        >>> network = nn.Linear(2, 3)
        >>> unwrap(network) is network
        True
    """
    while (compiled := is_compiled(network)) or isinstance(network, nn.parallel.DistributedDataParallel):
        network = network.get_submodule(COMPILED_PREFIX.rstrip(".") if compiled else "module")
    return network
