"""DTC by literal loops, in voxels, one output element after the other: independent of the code under test.

Written from the paper (arXiv:2601.17939, equations 1 and 2) with torch scalars, so that autograd differentiates it.
"""

import itertools
import math

import torch


def deformable_upsample_loops(value, coords, stride, receptive_field, offset="tanh", weight="sigmoid"):
    batch, channels, *sizes = value.shape
    axes = len(sizes)
    out_sizes = [size * step for size, step in zip(sizes, stride, strict=True)]
    rows = []
    for n in range(batch):
        for out in itertools.product(*(range(size) for size in out_sizes)):
            lower, fraction = [], []
            for a in range(axes):
                raw = coords[(n, a, *out)]
                shift = torch.tanh(raw) if offset == "tanh" else raw
                if weight == "sigmoid":
                    shift = shift / (1 + torch.exp(-coords[(n, axes + a, *out)]))
                elif weight == "linear":
                    shift = shift * coords[(n, axes + a, *out)]
                bound = sizes[a] / 2 if math.isinf(receptive_field) else receptive_field / 4
                shift = bound * shift
                if math.isnan(shift.item()):
                    shift = torch.zeros_like(shift)  # a constant: no gradient
                position = (out[a] + 0.5) / stride[a] - 0.5 + shift
                if not 0 <= position.item() < sizes[a] - 1:  # clamped; on the last voxel the slope above it: none
                    position = position.detach().clamp(0, sizes[a] - 1)
                low = min(math.floor(position.item()), max(sizes[a] - 2, 0))
                lower.append(low)
                fraction.append(position - low)
            sample = torch.zeros(channels, dtype=value.dtype)
            for corner in itertools.product((0, 1), repeat=axes):
                voxel = [low + step for low, step in zip(lower, corner, strict=True)]
                if any(v >= size for v, size in zip(voxel, sizes, strict=True)):
                    continue  # a map of one voxel has no second neighbour; its share is zero
                share = 1
                for a, step in enumerate(corner):
                    share = share * (fraction[a] if step else 1 - fraction[a])
                sample = sample + share * value[(n, slice(None), *voxel)]
            rows.append(sample)
    if not rows:
        return value.new_zeros((batch, channels, *out_sizes))
    result = torch.stack(rows).reshape(batch, *out_sizes, channels).movedim(-1, 1)
    return result + 0 * coords.nan_to_num(0.0, 0.0, 0.0).sum()  # coords have a gradient, though all may be clamped
