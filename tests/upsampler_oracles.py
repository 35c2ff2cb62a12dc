"""The upsamplers as literal loops over the output elements, in float64 with numpy.

They follow the papers, take the weights of a module as arrays, and call nothing of the code under test.
"""

import itertools
import math

import numpy as np


def arrays(module):
    """The parameters of a module by name, as float64 arrays."""
    return {name: parameter.detach().double().numpy() for name, parameter in module.named_parameters()}


def output_elements(array, stride):
    """Yield every output element with the input element in which it lies and the index of its sub-position."""
    sizes = [size * step for size, step in zip(array.shape[2:], stride, strict=True)]
    for out in itertools.product(*(range(size) for size in sizes)):
        low = tuple(o // step for o, step in zip(out, stride, strict=True))
        number = 0
        for o, step in zip(out, stride, strict=True):
            number = number * step + o % step
        yield out, low, number


def conv_loops(x, weight, bias=None):
    """A convolution with an odd kernel size and zero padding."""
    around = [range(-(size // 2), size // 2 + 1) for size in weight.shape[2:]]
    result = np.zeros((x.shape[0], weight.shape[0], *x.shape[2:]))
    for at in itertools.product(*(range(size) for size in x.shape[2:])):
        for tap in itertools.product(*around):
            where = tuple(a + t for a, t in zip(at, tap, strict=True))
            if any(w < 0 or w >= size for w, size in zip(where, x.shape[2:], strict=True)):
                continue
            kernel = weight[(..., *(t + size // 2 for t, size in zip(tap, weight.shape[2:], strict=True)))]
            for n in range(x.shape[0]):
                result[(n, slice(None), *at)] += kernel @ x[(n, slice(None), *where)]
    return result if bias is None else result + bias.reshape(1, -1, *[1] * (x.ndim - 2))


def shuffle_loops(x, stride):
    """The pixel shuffle for any stride."""
    count = math.prod(stride)
    channels = x.shape[1] // count
    result = np.zeros((x.shape[0], channels, *(s * step for s, step in zip(x.shape[2:], stride, strict=True))))
    for out, low, number in output_elements(x, stride):
        for c in range(channels):
            result[(slice(None), c, *out)] = x[(slice(None), c * count + number, *low)]
    return result


def interpolate(channel_map, position):
    """Linear interpolation of one map (S_1, .., S_g) at a position in voxels, clamped to the map."""
    total = 0.0
    inside = [min(max(p, 0.0), size - 1.0) for p, size in zip(position, channel_map.shape, strict=True)]
    for corner in itertools.product((0, 1), repeat=len(inside)):
        weight, where = 1.0, []
        for p, step, size in zip(inside, corner, channel_map.shape, strict=True):
            low = math.floor(p)
            weight *= p - low if step else 1 - (p - low)
            where.append(min(low + step, size - 1))
        total += weight * channel_map[tuple(where)]
    return total


def sample_loops(value, offsets, stride, groups):
    """Samples of value at the regular positions plus offsets[n, axis * groups + group, o]."""
    axes = value.ndim - 2
    sizes = [size * step for size, step in zip(value.shape[2:], stride, strict=True)]
    result = np.zeros((*value.shape[:2], *sizes))
    for n, c in itertools.product(range(value.shape[0]), range(value.shape[1])):
        group = c // (value.shape[1] // groups)
        for out, _, _ in output_elements(value, stride):
            position = [(out[a] + 0.5) / stride[a] - 0.5 + offsets[(n, a * groups + group, *out)] for a in range(axes)]
            result[(n, c, *out)] = interpolate(value[n, c], position)
    return result


def window(low, kernel_size):
    """Yield the elements of the window around an input element with their index."""
    around = [range(-(size // 2), size // 2 + 1) for size in kernel_size]
    for number, tap in enumerate(itertools.product(*around)):
        yield number, tuple(at + t for at, t in zip(low, tap, strict=True))


def read(array, where, padding):
    """array[:, :, where], also outside the map."""
    if padding == "zeros" and any(w < 0 or w >= size for w, size in zip(where, array.shape[2:], strict=True)):
        return np.zeros(array.shape[:2])
    inside = tuple(min(max(w, 0), size - 1) for w, size in zip(where, array.shape[2:], strict=True))
    return array[(slice(None), slice(None), *inside)]


def softmax(logits):
    """Over the second axis."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def reassemble_loops(value, weights, stride, kernel_size, padding):
    """Weighted sums of windows with weights (N, window, *out), which are not normalised."""
    result = np.zeros((*value.shape[:2], *weights.shape[2:]))
    for out, low, _ in output_elements(value, stride):
        for number, where in window(low, kernel_size):
            weight = weights[(slice(None), number, *out)]  # (N,)
            result[(slice(None), slice(None), *out)] += weight[:, None] * read(value, where, padding)
    return result


def project(parts, x):
    return conv_loops(x, parts["project.weight"], parts["project.bias"]) if "project.weight" in parts else x


def linear(module, x, skip=None):
    value = project(arrays(module), x)
    sizes = [size * step for size, step in zip(x.shape[2:], module.stride, strict=True)]
    return sample_loops(value, np.zeros((x.shape[0], x.ndim - 2, *sizes)), module.stride, 1)


def dysample(module, x, skip=None):
    parts = arrays(module)
    source = shuffle_loops(x, module.stride) if module.style == "pl" else x
    offsets = conv_loops(source, parts["offset.weight"], parts["offset.bias"])
    if "scope.weight" in parts:
        offsets *= 0.5 / (1 + np.exp(-conv_loops(source, parts["scope.weight"], parts["scope.bias"])))
    else:
        offsets *= 0.25
    if module.style == "lp":
        offsets = shuffle_loops(offsets, module.stride)
    return sample_loops(project(parts, x), offsets, module.stride, module.groups)


def carafe(module, x, skip=None):
    parts = arrays(module)
    compressed = conv_loops(x, parts["compress.weight"], parts["compress.bias"])
    logits = shuffle_loops(conv_loops(compressed, parts["encode.weight"], parts["encode.bias"]), module.stride)
    return reassemble_loops(project(parts, x), softmax(logits), module.stride, module.kernel_size, module.padding)


def fade(module, x, skip):
    parts = arrays(module)
    of_skip = conv_loops(skip, parts["compress_skip.weight"], parts["compress_skip.bias"])
    logits = conv_loops(of_skip, parts["encode.weight"], parts["encode.bias"])
    coarse = conv_loops(conv_loops(x, parts["compress.weight"]), parts["encode.weight"])
    gate = conv_loops(x, parts["gate.weight"], parts["gate.bias"])
    for out, low, _ in output_elements(x, module.stride):
        logits[(slice(None), slice(None), *out)] += coarse[(slice(None), slice(None), *low)]
    value = project(parts, x)
    result = reassemble_loops(value, softmax(logits), module.stride, module.kernel_size, module.padding)
    passed = skip
    if "project_skip.weight" in parts:
        passed = conv_loops(skip, parts["project_skip.weight"], parts["project_skip.bias"])
    for out, low, _ in output_elements(x, module.stride):
        gate_weight = 1 / (1 + np.exp(-gate[(slice(None), slice(None), *low)]))  # (N, 1)
        at = (slice(None), slice(None), *out)
        result[at] = gate_weight * passed[at] + (1 - gate_weight) * result[at]
    return result


def normalise(x, weight, bias):
    """LayerNorm over the channels of every element."""
    shape = (1, -1, *[1] * (x.ndim - 2))
    centred = x - x.mean(axis=1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    return scaled * weight.reshape(shape) + bias.reshape(shape)


def sapa(module, x, skip):
    parts = arrays(module)
    axes = x.ndim - 2
    queries, keys = (
        conv_loops(
            normalise(features, parts[f"{norm}.weight"], parts[f"{norm}.bias"]),
            parts[f"{layer}.weight"].reshape(*parts[f"{layer}.weight"].shape, *[1] * axes),
            parts[f"{layer}.bias"],
        )
        for features, norm, layer in ((skip, "norm_skip", "query"), (x, "norm", "key"))
    )
    logits = np.zeros((x.shape[0], math.prod(module.kernel_size), *skip.shape[2:]))
    for out, low, _ in output_elements(x, module.stride):
        for number, where in window(low, module.kernel_size):
            key = read(keys, where, module.padding)
            logits[(slice(None), number, *out)] = (queries[(slice(None), slice(None), *out)] * key).sum(axis=1)
    return reassemble_loops(project(parts, x), softmax(logits), module.stride, module.kernel_size, module.padding)
