"""The kernels of the CPU backend, in numba: machine code on the user's machine without a compiler.

Everything is three-dimensional here; an image is a volume of one slice with ``axes = 2``, whose first axis is never
moved. The low-resolution value is channels-last, so that the channels of one voxel lie side by side; the maps of the
output's size are as torch has them, channels first, and pass through a small tile that is transposed on the way.

``forward_rows`` and ``backward_blocks`` compute a range of output rows and release the interpreter's lock: their caller
splits the rows over its own threads. numba's own parallel loops are not used: its OpenMP layer ends a process that
forks after using it, as nnU-Net does, and its other layer one that calls from two threads.

Positions are computed in voxels. Where the interpolation is not differentiable, at a position on a voxel's centre, the
gradient is that of the side with the higher index; at the last centre of an axis, and beyond the first and the last, it
is zero.
"""

import functools
import inspect
import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload, register_jitable

from nnunet_dtc.ops.deformation import OFFSETS, WEIGHTS

TILE = 16  # output voxels that are transposed together
LANES = 8  # channels that are added together
TANH, SIGMOID, NO_WEIGHT = OFFSETS.index("tanh"), WEIGHTS.index("sigmoid"), WEIGHTS.index("none")
_FAST = {"contract", "reassoc", "nsz"}  # NaN and infinity keep their meaning, divisions stay divisions
_LOADS_NAME_TYPES = "typ" in inspect.signature(ir.IRBuilder.load).parameters  # older versions of llvmlite do not
_ONE, _TWO, _HALF, _ZERO = np.float32(1), np.float32(2), np.float32(0.5), np.float32(0)  # exact in every dtype


def compiled(function):
    """``function`` as machine code, kept for the next process in numba's cache (``NUMBA_CACHE_DIR``).

    Without a folder that can be written, or on a full disk, it is compiled in each process.
    """
    options = {"nogil": True, "fastmath": _FAST, "error_model": "numpy"}
    try:
        made = njit(cache=True, **options)(function)
    except RuntimeError:  # no such folder
        return njit(**options)(function)
    for name in ("load_overload", "save_overload"):  # numba passes on what the file system raises in a first call
        setattr(made._cache, name, _without_errors_of_files(getattr(made._cache, name)))
    return made


def _without_errors_of_files(method):
    """A method of numba's cache that returns None where a file cannot be read or written."""

    @functools.wraps(method)
    def call(*arguments, **keywords):
        try:
            return method(*arguments, **keywords)
        except OSError:  # a full disk or quota, or files of another user
            return None

    return call


@intrinsic
def _float_of_bits(typingctx, bits):
    """int32 bits as the float32 that has them."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@intrinsic
def _bits_of_float(typingctx, number):
    """The bits of a float32 as int32."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), codegen


def _scopes(module, *names):
    """LLVM's alias scopes: what was loaded or stored as one of ``names`` is no memory of the others."""
    domain = module.add_metadata(["nnunet_dtc"])
    return module.add_metadata([module.add_metadata([f"nnunet_dtc {name}", domain]) for name in names])


def _loader(other):
    """``array[index]`` of a flat array, index >= 0 (numba's own takes negative ones, and then does not vectorise).

    ``other``: the kinds of memory that the loaded one never is. What is loaded is a floating number or an index;
    uint16 arrays hold bfloat16.
    """

    @intrinsic
    def get(typingctx, array, index):
        def codegen(context, builder, signature, args):
            data = context.make_array(signature.args[0])(context, builder, args[0]).data
            loaded = builder.load(builder.gep(data, [args[1]]))
            loaded.set_metadata("noalias", _scopes(builder.module, *other))
            return loaded

        return array.dtype(array, types.intp), codegen

    def load(array, index):
        raise NotImplementedError

    @overload(load)
    def load_overload(array, index):
        if array.dtype == types.uint16:
            return lambda array, index: _float_of_bits(np.int32(np.uint32(get(array, index)) << np.uint32(16)))
        return lambda array, index: get(array, index)

    return load


def _storer(kind):
    """``array[index] = number`` of a flat array, index >= 0; into uint16 arrays as bfloat16, rounded to nearest even
    as torch does. ``kind``: which memory this is.
    """

    @intrinsic
    def put(typingctx, array, index, number):
        def codegen(context, builder, signature, args):
            data = context.make_array(signature.args[0])(context, builder, args[0]).data
            stored = builder.store(args[2], builder.gep(data, [args[1]]))
            stored.set_metadata("alias.scope", _scopes(builder.module, kind))
            return context.get_dummy_value()

        return types.void(array, types.intp, array.dtype), codegen

    def store(array, index, number):
        raise NotImplementedError

    @overload(store)
    def store_overload(array, index, number):
        if array.dtype != types.uint16:
            return lambda array, index, number: put(array, index, number)

        def store_bfloat16(array, index, number):
            bits = np.uint32(_bits_of_float(np.float32(number)))
            rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            put(array, index, np.uint16(rounded) if number == number else np.uint16(0x7FC0))

        return store_bfloat16

    return store


# three kinds of memory: what a kernel only reads, its own tiles, its results
_read = _loader(("tile", "result"))
_at, _put = _loader(("result",)), _storer("tile")
_result, _write = _loader(("tile",)), _storer("result")


@intrinsic
def _add_lanes(typingctx, result, at, tile, t, factor):
    """``result[at : at + LANES] += factor * tile[t : t + LANES]`` as one vector.

    LLVM does not vectorise these additions well itself: it cannot know that the voxels around a sample differ.
    """

    def codegen(context, builder, signature, args):
        element = context.get_value_type(signature.args[0].dtype)
        vector = ir.VectorType(element, LANES)
        align = context.get_abi_sizeof(element)

        def place(position):
            data = context.make_array(signature.args[position])(context, builder, args[position]).data
            return builder.bitcast(builder.gep(data, [args[position + 1]]), vector.as_pointer())

        def load(position):
            return builder.load(place(position), align=align, **({"typ": vector} if _LOADS_NAME_TYPES else {}))

        added = load(2)
        added.set_metadata("noalias", _scopes(builder.module, "result"))
        single = builder.insert_element(ir.Constant(vector, ir.Undefined), args[4], ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        product = builder.fmul(builder.shuffle_vector(single, single, zeros), added, flags=("contract",))
        before = load(0)
        before.set_metadata("noalias", _scopes(builder.module, "tile"))
        stored = builder.store(builder.fadd(before, product, flags=("contract",)), place(0), align=align)
        stored.set_metadata("alias.scope", _scopes(builder.module, "result"))
        return context.get_dummy_value()

    return types.void(result, types.intp, tile, types.intp, result.dtype), codegen


def _exp(number):
    raise NotImplementedError


@overload(_exp)
def _exp_overload(number):
    if number == types.float64:
        return lambda number: math.exp(number)

    def exp(number):
        """exp of a float32 within two units in the last place, in arithmetic that vectorises."""
        x = min(max(number, np.float32(-87)), np.float32(88))
        k = np.floor(x * np.float32(1.44269504088896341) + _HALF)
        r = x - k * np.float32(0.693359375) + k * np.float32(2.12194440e-4)  # ln 2 in two parts
        p = np.float32(1.9875691500e-4)
        p = p * r + np.float32(1.3981999507e-3)
        p = p * r + np.float32(8.3334519073e-3)
        p = p * r + np.float32(4.1665795894e-2)
        p = p * r + np.float32(1.6666665459e-1)
        p = p * r + np.float32(5.0000001201e-1)
        p = p * r * r + r + _ONE
        power = p * _float_of_bits((np.int32(k) + np.int32(127)) << np.int32(23))
        return power if number == number else number

    return exp


@compiled
def forward_rows(
    first, last, out, base, has_base, value, coords, starts, scales, tops, activations, sizes, stride, axes
):  # fmt: skip
    """Rows ``first`` to ``last`` of ``out = base + samples``; a row is (case, z, y), all channels.

    Args:
        out, base: (N * C * OD * OH * OW,), float32, float64 or uint16 that holds bfloat16; ``base`` may be ``out``.
        has_base: whether base is added.
        value: (N * D * H * W * C,), channels-last, float32 or float64: what everything is computed in.
        coords: (N * 2 axes * OD * OH * OW,), raw, any of the three; (N * axes * ..) without weight.
        starts: regular positions of each axis, one after the other, (OD + OH + OW,), in voxels of the value.
        scales, tops: (3,), lambda of equation 1 along each axis, and its last voxel, in voxels of the value.
        activations: activations of the offset and of the weight, as their indices in ``OFFSETS`` and ``WEIGHTS``.
        sizes: (C, D, H, W). stride: of each axis. axes: 2 or 3.
    """
    channels, depth, height, width = sizes
    rows_z, rows_y, row = depth * stride[0], height * stride[1], width * stride[2]
    plane = rows_z * rows_y * row
    low = np.zeros(3 * row, np.int64)
    fraction = np.zeros(3 * row, value.dtype)
    tile = np.empty(TILE * channels, value.dtype)
    for line in range(first, last):
        y = line % rows_y
        z = (line // rows_y) % rows_z
        n = line // (rows_y * rows_z)
        offset = (z * rows_y + y) * row
        _positions(low, fraction, n, z, y, coords, starts, scales, tops, activations, sizes, stride, axes)
        for x0 in range(0, row, TILE):
            count = min(TILE, row - x0)
            for j in range(count):
                x = x0 + j
                z0, y0, x_low = _at(low, x), _at(low, row + x), _at(low, 2 * row + x)
                fz, fy, fx = _at(fraction, x), _at(fraction, row + x), _at(fraction, 2 * row + x)
                a = (((n * depth + z0) * height + y0) * width + x_low) * channels
                b = a + (channels if x_low + 1 < width else 0)
                to_y = channels * width if y0 + 1 < height else 0
                c, d = a + to_y, b + to_y
                wa, wb, wc, wd = (_ONE - fy) * (_ONE - fx), (_ONE - fy) * fx, fy * (_ONE - fx), fy * fx
                t = j * channels
                if axes == 2:
                    for i in range(channels):
                        below = wa * _read(value, a + i) + wb * _read(value, b + i)
                        below += wc * _read(value, c + i) + wd * _read(value, d + i)
                        _put(tile, t + i, below)
                else:
                    to_z = channels * width * height if z0 + 1 < depth else 0
                    e, f, g, h = a + to_z, b + to_z, c + to_z, d + to_z
                    for i in range(channels):
                        below = wa * _read(value, a + i) + wb * _read(value, b + i)
                        below += wc * _read(value, c + i) + wd * _read(value, d + i)
                        above = wa * _read(value, e + i) + wb * _read(value, f + i)
                        above += wc * _read(value, g + i) + wd * _read(value, h + i)
                        _put(tile, t + i, below + fz * (above - below))
            for i in range(channels):
                o = (n * channels + i) * plane + offset + x0
                j = 0
                while j + 16 <= count:  # loops of a known length, which LLVM unrolls
                    if has_base:
                        for k in range(16):
                            _write(out, o + j + k, _read(base, o + j + k) + _at(tile, (j + k) * channels + i))
                    else:
                        for k in range(16):
                            _write(out, o + j + k, _at(tile, (j + k) * channels + i))
                    j += 16
                while j < count:
                    sample = _at(tile, j * channels + i)
                    _write(out, o + j, _read(base, o + j) + sample if has_base else sample)
                    j += 1


@compiled
def _positions(low, fraction, n, z, y, coords, starts, scales, tops, activations, sizes, stride, axes):
    """Fill the lower voxel of each axis and the interpolation weight of the one above it, (3 * OW,), for one row."""
    _, depth, height, width = sizes
    rows_z, rows_y, row = depth * stride[0], height * stride[1], width * stride[2]
    plane = rows_z * rows_y * row
    offset_kind, weight_kind = activations
    heads = axes if weight_kind == NO_WEIGHT else 2 * axes
    for axis in range(3 - axes, 3):
        head = (n * heads + axis - (3 - axes)) * plane + (z * rows_y + y) * row
        gate = head + axes * plane
        scale, top = scales[axis], tops[axis]
        here = axis * row
        for x in range(row):
            shift = scale * _offset(_read(coords, head + x), offset_kind)
            if weight_kind != NO_WEIGHT:
                shift = shift * _weight(_read(coords, gate + x), weight_kind)
            # a shift of NaN counts as zero: the caller's threads rely on the longest shift
            _put(fraction, here + x, shift if shift == shift else _ZERO)
        for x in range(row):
            start = _read(starts, (z if axis == 0 else rows_z + y) if axis < 2 else rows_z + rows_y + x)
            position = start + _at(fraction, here + x)
            inside = position if position > _ZERO else _ZERO
            inside = inside if inside < top else top
            below = np.floor(inside)
            _put(low, here + x, np.int64(below))
            _put(fraction, here + x, inside - below)


@register_jitable
def _offset(number, kind):
    """Offset of equation 1; tanh is exactly zero at zero."""
    return _ONE - _TWO / (_ONE + _exp(number + number)) if kind == TANH else number


@register_jitable
def _weight(number, kind):
    """Weight of equation 1, where there is one."""
    return _ONE / (_ONE + _exp(-number)) if kind == SIGMOID else number


@compiled
def backward_blocks(
    first,
    last,
    blocks,
    grad_value,
    grad_coords,
    has_value,
    has_coords,
    grad,
    value,
    coords,
    starts,
    scales,
    tops,
    activations,
    sizes,
    stride,
    axes,
):
    """Gradients of ``forward_rows`` by the output rows of some blocks, in their order.

    Args:
        blocks: (.., 5), of each: its case, and the range of output rows it has along z and along y. Two blocks that are
            computed at the same time must not reach the same voxel of the value.
        grad_value: (N * D * H * W * C,), channels-last, in the dtype of value; added to.
        grad_coords: like coords; written.
        has_value, has_coords: whether they are wanted.
        grad: (N * C * OD * OH * OW,), of the result, any of the three dtypes.
    """
    channels, depth, height, width = sizes
    rows_z, rows_y, row = depth * stride[0], height * stride[1], width * stride[2]
    plane = rows_z * rows_y * row
    low = np.zeros(3 * row, np.int64)
    fraction = np.zeros(3 * row, value.dtype)
    slope = np.zeros(3 * row, value.dtype)
    tile = np.empty(TILE * channels, value.dtype)
    whole = channels - channels % LANES
    for block in range(first, last):
        n = blocks[block, 0]
        for z in range(blocks[block, 1], blocks[block, 2]):
            for y in range(blocks[block, 3], blocks[block, 4]):
                offset = (z * rows_y + y) * row
                _positions(low, fraction, n, z, y, coords, starts, scales, tops, activations, sizes, stride, axes)
                for x0 in range(0, row, TILE):
                    count = min(TILE, row - x0)
                    for i in range(channels):
                        o = (n * channels + i) * plane + offset + x0
                        for j in range(count):
                            _put(tile, j * channels + i, _read(grad, o + j))
                    for j in range(count):
                        x = x0 + j
                        z0, y0, x_low = _at(low, x), _at(low, row + x), _at(low, 2 * row + x)
                        fz, fy, fx = _at(fraction, x), _at(fraction, row + x), _at(fraction, 2 * row + x)
                        a = (((n * depth + z0) * height + y0) * width + x_low) * channels
                        to_x = channels if x_low + 1 < width else 0
                        to_y = channels * width if y0 + 1 < height else 0
                        to_z = channels * width * height if z0 + 1 < depth else 0
                        t = j * channels
                        slope_z, slope_y, slope_x = _ZERO, _ZERO, _ZERO
                        for k in range(2 if axes == 3 else 1):
                            p = a + k * to_z
                            wz = fz if k == 1 else _ONE - fz
                            q, r, s = p + to_x, p + to_y, p + to_x + to_y
                            if has_coords:  # the products of the gradient with the four voxels of this slice
                                vp, vq, vr, vs = _zero(value), _zero(value), _zero(value), _zero(value)
                                for i in range(channels):
                                    g = _at(tile, t + i)
                                    vp += g * _read(value, p + i)
                                    vq += g * _read(value, q + i)
                                    vr += g * _read(value, r + i)
                                    vs += g * _read(value, s + i)
                                slope_x += wz * ((_ONE - fy) * (vq - vp) + fy * (vs - vr))
                                slope_y += wz * ((_ONE - fx) * (vr - vp) + fx * (vs - vq))
                                flat = (_ONE - fy) * ((_ONE - fx) * vp + fx * vq) + fy * ((_ONE - fx) * vr + fx * vs)
                                slope_z += flat if k == 1 else -flat
                            if has_value:
                                wp, wq = wz * (_ONE - fy) * (_ONE - fx), wz * (_ONE - fy) * fx
                                wr, ws = wz * fy * (_ONE - fx), wz * fy * fx
                                for i in range(0, whole, LANES):  # at a border some of the four are the same voxel
                                    _add_lanes(grad_value, p + i, tile, t + i, wp)
                                    _add_lanes(grad_value, q + i, tile, t + i, wq)
                                    _add_lanes(grad_value, r + i, tile, t + i, wr)
                                    _add_lanes(grad_value, s + i, tile, t + i, ws)
                                for i in range(whole, channels):
                                    g = _at(tile, t + i)
                                    _write(grad_value, p + i, _result(grad_value, p + i) + wp * g)
                                    _write(grad_value, q + i, _result(grad_value, q + i) + wq * g)
                                    _write(grad_value, r + i, _result(grad_value, r + i) + wr * g)
                                    _write(grad_value, s + i, _result(grad_value, s + i) + ws * g)
                        if has_coords:
                            _put(slope, x, slope_z)
                            _put(slope, row + x, slope_y)
                            _put(slope, 2 * row + x, slope_x)
                if has_coords:
                    _coords_gradients(
                        grad_coords, slope, n, z, y, coords, starts, scales, tops, activations, sizes, stride, axes
                    )


@compiled
def _coords_gradients(grad_coords, slope, n, z, y, coords, starts, scales, tops, activations, sizes, stride, axes):
    """Fill the gradients of one row from its slope along each axis, through the clamp and the activations."""
    _, depth, height, width = sizes
    rows_z, rows_y, row = depth * stride[0], height * stride[1], width * stride[2]
    plane = rows_z * rows_y * row
    offset_kind, weight_kind = activations
    heads = axes if weight_kind == NO_WEIGHT else 2 * axes
    for axis in range(3 - axes, 3):
        head = (n * heads + axis - (3 - axes)) * plane + (z * rows_y + y) * row
        gate = head + axes * plane
        scale, top = scales[axis], tops[axis]
        here = axis * row
        for x in range(row):
            offset = _offset(_read(coords, head + x), offset_kind)
            weight = _weight(_read(coords, gate + x), weight_kind) if weight_kind != NO_WEIGHT else _ONE
            start = _read(starts, (z if axis == 0 else rows_z + y) if axis < 2 else rows_z + rows_y + x)
            position = start + scale * offset * weight
            inside = position >= _ZERO and position < top  # false where the shift is NaN as well
            slope_here = scale * _at(slope, here + x)
            by_offset = _ONE - offset * offset if offset_kind == TANH else _ONE
            _write(grad_coords, head + x, slope_here * weight * by_offset if inside else _ZERO)
            if weight_kind != NO_WEIGHT:
                by_weight = weight * (_ONE - weight) if weight_kind == SIGMOID else _ONE
                _write(grad_coords, gate + x, slope_here * offset * by_weight if inside else _ZERO)


@register_jitable
def _zero(array):
    return array.dtype.type(0)
