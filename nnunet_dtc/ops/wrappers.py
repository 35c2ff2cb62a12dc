"""What a training puts around a network."""

from torch import nn
from torch._dynamo import OptimizedModule


def unwrap(network: nn.Module) -> nn.Module:
    """The network without DistributedDataParallel and torch.compile around it, in any order."""
    while isinstance(network, nn.parallel.DistributedDataParallel | OptimizedModule):
        network = network._orig_mod if isinstance(network, OptimizedModule) else network.module
    return network
