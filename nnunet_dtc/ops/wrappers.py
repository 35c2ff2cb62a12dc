"""The wrappers of DistributedDataParallel and ``torch.compile`` around a network."""

from torch import nn
from torch._dynamo import OptimizedModule


def unwrap(network: nn.Module) -> nn.Module:
    """The network without the wrappers of DistributedDataParallel and ``torch.compile``, in whatever order they are.

    Example:
        >>> network = nn.Linear(2, 3)
        >>> unwrap(network) is network
        True
    """
    while isinstance(network, nn.parallel.DistributedDataParallel | OptimizedModule):
        network = network._orig_mod if isinstance(network, OptimizedModule) else network.module
    return network
