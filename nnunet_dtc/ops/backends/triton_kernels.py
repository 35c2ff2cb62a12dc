"""The kernels of the CUDA backend, in Triton.

Everything is three-dimensional here; an image is a volume of one slice, ``AXES`` is then 2 and the first axis never
moves. The low-resolution value and its gradient are channels-last, (N, D, H, W, P): the channels of one voxel lie side
by side, and a block of samples reads them as short contiguous rows. P is C, or more: a multiple of BC, so that no row
needs a mask or starts unaligned; the channels beyond C are zeros. Maps of the output's size are channels first, as
torch has them. All arithmetic is float32; maps keep their dtype in memory.

Names: N cases, C channels, (D, H, W) the value's size, (SD, SH, SW) the stride, RD, RH, RW the bounds of the shifts in
voxels; a program has BM samples (or voxels), BC channels at a time. Keep the blocks small: of each of its samples a
thread holds eight addresses and interpolation weights, and registers are soon used up.
"""

import triton
import triton.language as tl


@triton.jit
def _activations(coords, sample, inside, total, n, AXIS: tl.constexpr, AXES: tl.constexpr, WEIGHTED: tl.constexpr):
    """Offset and Weight of equation 1 of a block of samples, for one of three axes."""
    heads: tl.constexpr = 2 * AXES if WEIGHTED else AXES
    head: tl.constexpr = AXIS - (3 - AXES)
    row = coords + (n.to(tl.int64) * heads + head) * total
    offset = tl.load(row + sample, mask=inside, other=0.0).to(tl.float32)
    offset = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * offset))  # tanh, exactly zero at zero
    weight = tl.full(offset.shape, 1.0, tl.float32)
    if WEIGHTED:
        raw = tl.load(row + AXES * total + sample, mask=inside, other=0.0).to(tl.float32)
        weight = 1.0 / (1.0 + tl.exp(-raw))
    return offset, weight


@triton.jit
def _regular(element, STEP: tl.constexpr):
    """P_grid in voxels: exact on the centres of voxels, where a division might not be."""
    return (element // STEP).to(tl.float32) + (2 * (element % STEP) + 1 - STEP).to(tl.float32) / (2 * STEP)


@triton.jit
def _positions(element, STEP: tl.constexpr, shift):
    """P_new in voxels of an axis, NaN where the shift is; and without NaN, where a shift of NaN counts as zero.

    The gather relies on the bound of the shifts.
    """
    regular = _regular(element, STEP)
    position = regular + shift
    return position, tl.where(position == position, position, regular)


@triton.jit
def _between(position, size):
    """The position within the map, its lower voxel, 1 where one is above that, and the interpolation weight of it."""
    top = size - 1.0  # a size of one is a constant here, which has no .to()
    position = tl.where(position > 0.0, position, 0.0)
    position = tl.where(position < top, position, top)
    below = tl.floor(position)
    low = below.to(tl.int32)
    return position, low, (low + 1 < size).to(tl.int32), position - below


@triton.jit
def _store_gradient(place, position, size, slope, offset, weight, gate, inside, WEIGHTED: tl.constexpr):
    """The gradients of one axis' raw offsets at ``place``, and of its raw weights ``gate`` elements behind, of a block.

    None beyond the first and from the last voxel on, nor where the position is NaN; selected and not multiplied by
    zero, since the activations may be NaN, too.
    """
    moves = (position >= 0.0) & (position < size - 1.0)
    kind = place.dtype.element_ty
    by_offset = tl.where(moves, slope * weight * (1.0 - offset * offset), 0.0)
    tl.store(place, by_offset.to(kind), mask=inside)
    if WEIGHTED:
        by_weight = tl.where(moves, slope * offset * weight * (1.0 - weight), 0.0)
        tl.store(place + gate, by_weight.to(kind), mask=inside)


@triton.jit
def forward_kernel(
    out, base, value, coords, C, P, D, H, W, RD, RH, RW,
    SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, AXES: tl.constexpr, WEIGHTED: tl.constexpr,
    HAS_BASE: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """``out = base + samples``; a program has BM samples of one case, all channels."""
    n = tl.program_id(1)
    rows, row = H * SH, W * SW
    total = D * SD * rows * row
    sample = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = sample < total
    x, y, z = sample % row, (sample // row) % rows, sample // (row * rows)

    y_offset, y_weight = _activations(coords, sample, inside, total, n, 1, AXES, WEIGHTED)
    x_offset, x_weight = _activations(coords, sample, inside, total, n, 2, AXES, WEIGHTED)
    _, y_finite = _positions(y, SH, RH * y_offset * y_weight)
    _, x_finite = _positions(x, SW, RW * x_offset * x_weight)
    _, y0, y_up, fy = _between(y_finite, H)
    _, x0, x_up, fx = _between(x_finite, W)
    voxel = n.to(tl.int64) * D * H * W + y0 * W + x0
    if AXES == 3:
        z_offset, z_weight = _activations(coords, sample, inside, total, n, 0, AXES, WEIGHTED)
        _, z_finite = _positions(z, SD, RD * z_offset * z_weight)
        _, z0, z_up, fz = _between(z_finite, D)
        voxel += z0 * H * W

    for first in range(0, C, BC):
        channel = first + tl.arange(0, BC)
        kept = inside[:, None] & (channel < C)[None, :]
        sums = tl.zeros((BM, BC), tl.float32)
        for corner in tl.static_range(0, 2**AXES):
            at = voxel + (corner & 1) * x_up + ((corner >> 1) & 1) * y_up * W
            corner_weight = (fx if corner & 1 else 1.0 - fx) * (fy if (corner >> 1) & 1 else 1.0 - fy)
            if AXES == 3:
                at += (corner >> 2) * z_up * H * W
                corner_weight *= fz if corner >> 2 else 1.0 - fz
            neighbour = tl.load(value + at[:, None] * P + channel[None, :], mask=inside[:, None], other=0.0)
            sums += corner_weight[:, None] * neighbour.to(tl.float32)
        element = (n.to(tl.int64) * C + channel.to(tl.int64))[None, :] * total + sample[:, None]
        if HAS_BASE:
            sums += tl.load(base + element, mask=kept, other=0.0).to(tl.float32)
        tl.store(out + element, sums.to(out.dtype.element_ty), mask=kept)


@triton.jit
def coords_kernel(
    grad_coords, positions, grad, value, coords, C, P, D, H, W, RD, RH, RW,
    SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, AXES: tl.constexpr, WEIGHTED: tl.constexpr,
    COORDS: tl.constexpr, POSITIONS: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Of BM samples of one case: the gradient of their coordinates (``COORDS``), and their positions, (N, AXES, ..),
    for the kernels of the value's gradient (``POSITIONS``)."""
    n = tl.program_id(1)
    rows, row = H * SH, W * SW
    total = D * SD * rows * row
    sample = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = sample < total
    x, y, z = sample % row, (sample // row) % rows, sample // (row * rows)

    y_offset, y_weight = _activations(coords, sample, inside, total, n, 1, AXES, WEIGHTED)
    x_offset, x_weight = _activations(coords, sample, inside, total, n, 2, AXES, WEIGHTED)
    y_position, y_finite = _positions(y, SH, RH * y_offset * y_weight)
    x_position, x_finite = _positions(x, SW, RW * x_offset * x_weight)
    py, y0, y_up, fy = _between(y_finite, H)
    px, x0, x_up, fx = _between(x_finite, W)
    voxel = n.to(tl.int64) * D * H * W + y0 * W + x0
    if AXES == 3:
        z_offset, z_weight = _activations(coords, sample, inside, total, n, 0, AXES, WEIGHTED)
        z_position, z_finite = _positions(z, SD, RD * z_offset * z_weight)
        pz, z0, z_up, fz = _between(z_finite, D)
        voxel += z0 * H * W
    if POSITIONS:
        place = positions + n.to(tl.int64) * AXES * total + sample
        if AXES == 3:
            tl.store(place, pz, mask=inside)
        tl.store(place + (AXES - 2) * total, py, mask=inside)
        tl.store(place + (AXES - 1) * total, px, mask=inside)

    if COORDS:
        by_z = tl.zeros((BM,), tl.float32)
        by_y = tl.zeros((BM,), tl.float32)
        by_x = tl.zeros((BM,), tl.float32)
        for first in range(0, C, BC):
            channel = first + tl.arange(0, BC)
            kept = inside[:, None] & (channel < C)[None, :]
            element = (n.to(tl.int64) * C + channel.to(tl.int64))[None, :] * total + sample[:, None]
            upstream = tl.load(grad + element, mask=kept, other=0.0).to(tl.float32)
            for corner in tl.static_range(0, 2**AXES):
                at = voxel + (corner & 1) * x_up + ((corner >> 1) & 1) * y_up * W
                wx = fx if corner & 1 else 1.0 - fx
                wy = fy if (corner >> 1) & 1 else 1.0 - fy
                wz = tl.full((BM,), 1.0, tl.float32)
                if AXES == 3:
                    at += (corner >> 2) * z_up * H * W
                    wz = fz if corner >> 2 else 1.0 - fz
                neighbour = value + at[:, None] * P + channel[None, :]
                read = tl.load(neighbour, mask=inside[:, None], other=0.0).to(tl.float32)
                product = tl.sum(upstream * read, axis=1)
                by_x += wz * wy * product if corner & 1 else -wz * wy * product
                by_y += wz * wx * product if (corner >> 1) & 1 else -wz * wx * product
                if AXES == 3:
                    by_z += wy * wx * product if corner >> 2 else -wy * wx * product
        heads: tl.constexpr = 2 * AXES if WEIGHTED else AXES
        place = grad_coords + n.to(tl.int64) * heads * total + sample
        y_place, x_place, gate = place + (AXES - 2) * total, place + (AXES - 1) * total, AXES * total
        _store_gradient(y_place, y_position, H, by_y * RH, y_offset, y_weight, gate, inside, WEIGHTED)
        _store_gradient(x_place, x_position, W, by_x * RW, x_offset, x_weight, gate, inside, WEIGHTED)
        if AXES == 3:
            _store_gradient(place, z_position, D, by_z * RD, z_offset, z_weight, gate, inside, WEIGHTED)


@triton.jit
def gather_kernel(
    grad_value, grad, positions, C, P, D, H, W,
    LEAD_D: tl.constexpr, LEAD_H: tl.constexpr, LEAD_W: tl.constexpr,
    REACH_D: tl.constexpr, REACH_H: tl.constexpr, REACH_W: tl.constexpr,
    SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, AXES: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The gradient of BM voxels and BC channels of the value, gathered from all samples in reach.

    Shifts have a bound: along an axis, voxel i can be touched only by the ``REACH`` samples from ``i * S - LEAD`` on.
    Each voxel sums them in the same order every time.
    """
    n = tl.program_id(2)
    rows, row = H * SH, W * SW
    depth = D * SD
    total = depth * rows * row
    voxel = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = voxel < D * H * W
    x, y, z = voxel % W, (voxel // W) % H, voxel // (W * H)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    kept = (channel < C)[None, :]
    place = positions + n.to(tl.int64) * AXES * total
    source = (n.to(tl.int64) * C + channel.to(tl.int64))[None, :] * total
    sums = tl.zeros((BM, BC), tl.float32)
    for dz in range(REACH_D):
        oz = z * SD - LEAD_D + dz
        in_z = inside & (oz >= 0) & (oz < depth)
        for dy in range(REACH_H):
            oy = y * SH - LEAD_H + dy
            in_y = in_z & (oy >= 0) & (oy < rows)
            for dx in range(REACH_W):
                ox = x * SW - LEAD_W + dx
                valid = in_y & (ox >= 0) & (ox < row)
                sample = (oz * rows + oy) * row + ox
                py = tl.load(place + (AXES - 2) * total + sample, mask=valid, other=0.0)
                px = tl.load(place + (AXES - 1) * total + sample, mask=valid, other=0.0)
                weight = tl.maximum(1.0 - tl.abs(py - y.to(tl.float32)), 0.0)
                weight *= tl.maximum(1.0 - tl.abs(px - x.to(tl.float32)), 0.0)
                if AXES == 3:
                    pz = tl.load(place + sample, mask=valid, other=0.0)
                    weight *= tl.maximum(1.0 - tl.abs(pz - z.to(tl.float32)), 0.0)
                weight = tl.where(valid, weight, 0.0)
                touched = (weight > 0.0)[:, None] & kept
                upstream = tl.load(grad + source + sample[:, None], mask=touched, other=0.0).to(tl.float32)
                sums += weight[:, None] * upstream
    at = (n.to(tl.int64) * D * H * W + voxel)[:, None] * P + channel[None, :]
    tl.store(grad_value + at, sums.to(grad_value.dtype.element_ty), mask=inside[:, None])


@triton.jit
def scatter_kernel(
    grad_value, grad, positions, C, P, D, H, W,
    SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, AXES: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Add BM samples of BC channels to the gradient of the value, float32, by atomic additions in any order."""
    n = tl.program_id(2)
    rows, row = H * SH, W * SW
    total = D * SD * rows * row
    sample = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = sample < total
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    kept = inside[:, None] & (channel < C)[None, :]
    place = positions + n.to(tl.int64) * AXES * total + sample
    _, y0, y_up, fy = _between(tl.load(place + (AXES - 2) * total, mask=inside, other=0.0), H)
    _, x0, x_up, fx = _between(tl.load(place + (AXES - 1) * total, mask=inside, other=0.0), W)
    voxel = n.to(tl.int64) * D * H * W + y0 * W + x0
    if AXES == 3:
        _, z0, z_up, fz = _between(tl.load(place, mask=inside, other=0.0), D)
        voxel += z0 * H * W
    element = (n.to(tl.int64) * C + channel.to(tl.int64))[None, :] * total + sample[:, None]
    upstream = tl.load(grad + element, mask=kept, other=0.0).to(tl.float32)
    for corner in tl.static_range(0, 2**AXES):
        at = voxel + (corner & 1) * x_up + ((corner >> 1) & 1) * y_up * W
        corner_weight = (fx if corner & 1 else 1.0 - fx) * (fy if (corner >> 1) & 1 else 1.0 - fy)
        if AXES == 3:
            at += (corner >> 2) * z_up * H * W
            corner_weight *= fz if corner >> 2 else 1.0 - fz
        neighbour = grad_value + at[:, None] * P + channel[None, :]
        tl.atomic_add(neighbour, corner_weight[:, None] * upstream, mask=kept, sem="relaxed")
