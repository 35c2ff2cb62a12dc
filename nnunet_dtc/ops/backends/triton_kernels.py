"""The kernels of the CUDA backend, in Triton.

Everything is three-dimensional here; an image is a volume of one slice, ``AXES`` is then 2 and the first axis never
moves. The low-resolution value and its gradient are channels-last, (N, D, H, W, P): the channels of one voxel lie side
by side, and a block of samples reads them as short contiguous rows. P is C, rounded up to a multiple of BC, so that no
row needs a mask or starts unaligned; the channels beyond C are zeros. Maps of the output's size are channels first, as
torch has them. All arithmetic is float32; maps keep their dtype in memory.

Names: N cases, C channels, (D, H, W) the value's size, (SD, SH, SW) the stride, RD, RH, RW the bounds of the shifts in
voxels; a program has BM samples, BC channels at a time. The kernels are bound by the instructions that they issue, not
by memory. One warp has a block of 32 samples and 16 channels: what is computed for each sample (activations, positions,
addresses) is then computed by one or two threads, and not by every thread that has some of its channels.
``benchmarks/kernel_cost.py`` counts instructions and registers without a GPU.
"""

import triton
import triton.language as tl


@triton.jit
def _activations(
    coords, sample, inside, total, n, AXIS: tl.constexpr, AXES: tl.constexpr, OFFSET: tl.constexpr, WEIGHT: tl.constexpr
):
    """Offset and Weight of equation 1 of a block of samples, for one of three axes."""
    heads: tl.constexpr = AXES if WEIGHT == "none" else 2 * AXES
    head: tl.constexpr = AXIS - (3 - AXES)
    row = coords + (n.to(tl.int64) * heads + head) * total
    raw = tl.load(row + sample, mask=inside, other=0.0).to(tl.float32)
    offset = raw
    if OFFSET == "tanh":
        small = tl.exp(-2.0 * tl.abs(raw))
        size = (1.0 - small) / (1.0 + small)  # of tanh, exactly zero at zero however the division rounds
        offset = tl.where(raw < 0.0, -size, size)
    weight = tl.full(offset.shape, 1.0, tl.float32)
    if WEIGHT != "none":
        weight = tl.load(row + AXES * total + sample, mask=inside, other=0.0).to(tl.float32)
        if WEIGHT == "sigmoid":
            weight = 1.0 / (1.0 + tl.exp(-weight))
    return offset, weight


@triton.jit
def _regular(element, STEP: tl.constexpr):
    """P_grid in voxels: exact on the centres of voxels, where a division might not be."""
    return (element // STEP).to(tl.float32) + (2 * (element % STEP) + 1 - STEP).to(tl.float32) / (2 * STEP)


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
def _block(D, H, W, SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, BM: tl.constexpr):
    """The samples of this program, which of them exist, how many a case has, and their places along three axes."""
    rows, row = H * SH, W * SW
    total = D * SD * rows * row
    sample = tl.program_id(0) * BM + tl.arange(0, BM)
    return sample, sample < total, total, sample // (row * rows), (sample // row) % rows, sample % row


@triton.jit
def _along(
    coords, sample, inside, total, n, element, size, bound,
    STEP: tl.constexpr, AXIS: tl.constexpr, AXES: tl.constexpr, OFFSET: tl.constexpr, WEIGHT: tl.constexpr,
):  # fmt: skip
    """Equation 1 along one axis: Offset, Weight, P_new (NaN where the shift is), and what ``_between`` makes of it.

    A shift of NaN counts as zero there, since the gather relies on the bound of the shifts.
    """
    offset, weight = _activations(coords, sample, inside, total, n, AXIS, AXES, OFFSET, WEIGHT)
    regular = _regular(element, STEP)
    position = regular + bound * offset * weight
    on_map, low, up, fraction = _between(tl.where(position == position, position, regular), size)
    return offset, weight, position, on_map, low, up, fraction


@triton.jit
def _store_gradient(
    place, position, size, slope, offset, weight, gate, inside, OFFSET: tl.constexpr, WEIGHT: tl.constexpr
):
    """The gradients of one axis' raw offsets at ``place``, and of its raw weights ``gate`` elements behind, of a block.

    None beyond the first and from the last voxel on, nor where the position is NaN; selected and not multiplied by
    zero, since the activations may be NaN, too.
    """
    moves = (position >= 0.0) & (position < size - 1.0)
    kind = place.dtype.element_ty
    through = slope * weight
    if OFFSET == "tanh":
        through *= 1.0 - offset * offset
    by_offset = tl.where(moves, through, 0.0)
    tl.store(place, by_offset.to(kind), mask=inside)
    if WEIGHT != "none":
        through = slope * offset
        if WEIGHT == "sigmoid":
            through *= weight * (1.0 - weight)
        by_weight = tl.where(moves, through, 0.0)
        tl.store(place + gate, by_weight.to(kind), mask=inside)


@triton.jit
def forward_kernel(
    out, base, value, coords, C, P, D, H, W, RD, RH, RW,
    SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, AXES: tl.constexpr,
    OFFSET: tl.constexpr, WEIGHT: tl.constexpr, HAS_BASE: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """``out = base + samples``; a program has BM samples of one case, all channels."""
    n = tl.program_id(1)
    sample, inside, total, z, y, x = _block(D, H, W, SD, SH, SW, BM)
    _, _, _, _, y0, y_up, fy = _along(coords, sample, inside, total, n, y, H, RH, SH, 1, AXES, OFFSET, WEIGHT)
    _, _, _, _, x0, x_up, fx = _along(coords, sample, inside, total, n, x, W, RW, SW, 2, AXES, OFFSET, WEIGHT)
    voxel = n.to(tl.int64) * D * H * W + y0 * W + x0
    if AXES == 3:
        _, _, _, _, z0, z_up, fz = _along(coords, sample, inside, total, n, z, D, RD, SD, 0, AXES, OFFSET, WEIGHT)
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
def _product(value, at, P, channel, upstream, inside):
    """For each sample, the sum over the channels of a voxel times the gradient from above."""
    neighbour = tl.load(value + at[:, None] * P + channel[None, :], mask=inside[:, None], other=0.0)
    return tl.sum(upstream * neighbour.to(tl.float32), axis=1)


@triton.jit
def coords_kernel(
    grad_coords, positions, grad, value, coords, C, P, D, H, W, RD, RH, RW,
    SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, AXES: tl.constexpr,
    OFFSET: tl.constexpr, WEIGHT: tl.constexpr, COORDS: tl.constexpr, POSITIONS: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """For BM samples of one case: the gradient of their coordinates (``COORDS``), and their positions, (N, AXES, ..),
    for the kernels of the value's gradient (``POSITIONS``)."""
    n = tl.program_id(1)
    sample, inside, total, z, y, x = _block(D, H, W, SD, SH, SW, BM)
    y_offset, y_weight, y_position, py, y0, y_up, fy = _along(
        coords, sample, inside, total, n, y, H, RH, SH, 1, AXES, OFFSET, WEIGHT
    )
    x_offset, x_weight, x_position, px, x0, x_up, fx = _along(
        coords, sample, inside, total, n, x, W, RW, SW, 2, AXES, OFFSET, WEIGHT
    )
    voxel = n.to(tl.int64) * D * H * W + y0 * W + x0
    if AXES == 3:
        z_offset, z_weight, z_position, pz, z0, z_up, fz = _along(
            coords, sample, inside, total, n, z, D, RD, SD, 0, AXES, OFFSET, WEIGHT
        )
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
            for edge in tl.static_range(0, 2 ** (AXES - 1)):  # of the cell around a sample, along the last axis
                at = voxel + (edge & 1) * y_up * W
                wy = fy if edge & 1 else 1.0 - fy
                if AXES == 3:
                    at += (edge >> 1) * z_up * H * W
                    wz = fz if edge >> 1 else 1.0 - fz
                low = _product(value, at, P, channel, upstream, inside)
                high = _product(value, at + x_up, P, channel, upstream, inside)
                along = high - low
                here = low + fx * along
                if AXES == 3:
                    by_x += wz * wy * along
                    by_y += wz * here if edge & 1 else -wz * here
                    by_z += wy * here if edge >> 1 else -wy * here
                else:
                    by_x += wy * along
                    by_y += here if edge & 1 else -here
        heads: tl.constexpr = AXES if WEIGHT == "none" else 2 * AXES
        place = grad_coords + n.to(tl.int64) * heads * total + sample
        y_place, x_place, gate = place + (AXES - 2) * total, place + (AXES - 1) * total, AXES * total
        _store_gradient(y_place, y_position, H, by_y * RH, y_offset, y_weight, gate, inside, OFFSET, WEIGHT)
        _store_gradient(x_place, x_position, W, by_x * RW, x_offset, x_weight, gate, inside, OFFSET, WEIGHT)
        if AXES == 3:
            _store_gradient(place, z_position, D, by_z * RD, z_offset, z_weight, gate, inside, OFFSET, WEIGHT)


@triton.jit
def _triangle(distance):
    """The weight of linear interpolation of a voxel at a distance: 1 at its centre, 0 from one voxel on."""
    return tl.maximum(1.0 - tl.abs(distance), 0.0)


@triton.jit
def _upstream(
    grad, place, channel_rows, line, x, x_cell, z, part, total, W,
    SW: tl.constexpr, SLOTS: tl.constexpr, AXES: tl.constexpr,
):  # fmt: skip
    """For the samples of cells ``x_cell`` in one line of samples: the gradient from above (slots, BC), the product of
    the interpolation weights of voxel ``x`` and slice ``z`` (slots,), and the position along y (slots,)."""
    valid = (x_cell >= 0) & (x_cell < W)
    if SLOTS != SW:
        valid = valid & (part < SW)
    sample = line + x_cell * SW + part
    far = -1e9  # a sample that does not exist is a sample that is far away
    weight = _triangle(tl.load(place + (AXES - 1) * total + sample, mask=valid, other=far) - x.to(tl.float32))
    if AXES == 3:
        weight *= _triangle(tl.load(place + sample, mask=valid, other=far) - z)
    py = tl.load(place + (AXES - 2) * total + sample, mask=valid, other=far)
    upstream = tl.load(grad + channel_rows[None, :] + sample[:, None], mask=valid[:, None], other=0.0)
    return upstream.to(tl.float32), weight, py


@triton.jit
def _store_row(
    grad_value, sums, n, z, y, x0, channel, P, D, H, W, wanted, SLOTS: tl.constexpr, BX: tl.constexpr, BC: tl.constexpr
):
    """Add up the slots of BX voxels of one row, and store them."""
    x = x0 + tl.arange(0, BX)
    voxel = ((n.to(tl.int64) * D + z) * H + y) * W + x
    row = tl.sum(tl.reshape(sums, (BX, SLOTS, BC)), axis=1) if SLOTS > 1 else sums
    place = grad_value + voxel[:, None] * P + channel[None, :]
    tl.store(place, row.to(grad_value.dtype.element_ty), mask=((x < W) & wanted)[:, None])


@triton.jit(do_not_specialize=["ROWS"])  # one kernel for any number
def gather_kernel(
    grad_value, grad, positions, C, P, D, H, W, ROWS,
    EZ: tl.constexpr, EY: tl.constexpr, EX: tl.constexpr, SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    SLOTS: tl.constexpr, ROLLED: tl.constexpr, AXES: tl.constexpr, BX: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The gradient of BX voxels side by side in ROWS rows of one slice, of BC channels, gathered from their samples.

    A voxel has a cell of SD x SH x SW samples. Shifts have a bound: a sample touches no voxel further than (EZ, EY, EX)
    voxels from its own. Cells are read in phases: the tile's own, and those that lie e voxels beside it; the samples
    of a phase are contiguous, and each has a slot (SLOTS is SW, rounded up to a power of two) with sums of its own,
    which are added up in the end. With ``ROLLED`` (EY is 1) what is read of a row of cells goes to the rows above, at
    and below it at once; each row is stored when it has all three. The order of every sum is fixed.
    """
    n = tl.program_id(2)
    tiles, chunks = tl.cdiv(W, BX), tl.cdiv(H, ROWS)
    tile = tl.program_id(0)
    x0, y0, z = (tile % tiles) * BX, ((tile // tiles) % chunks) * ROWS, tile // (tiles * chunks)
    rows, row = H * SH, W * SW
    total = D * SD * rows * row
    slot = tl.arange(0, BX * SLOTS)
    x, part = x0 + slot // SLOTS, slot % SLOTS
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    # channels beyond C are padding, whatever they hold
    channel_rows = (n.to(tl.int64) * C + tl.minimum(channel, C - 1).to(tl.int64)) * total
    place = positions + n.to(tl.int64) * AXES * total
    end = tl.minimum(y0 + ROWS, H)
    first_plane, last_plane = tl.maximum((z - EZ) * SD, 0), tl.minimum((z + EZ + 1) * SD, D * SD)
    slice_ = z * 1.0
    if ROLLED:
        above = tl.zeros((BX * SLOTS, BC), tl.float32)
        here = tl.zeros((BX * SLOTS, BC), tl.float32)
        below = tl.zeros((BX * SLOTS, BC), tl.float32)
        for y in range(y0 - 1, end + 1):  # cells
            centre = y * 1.0
            after = tl.where((y >= 0) & (y < H), last_plane, first_plane)  # no planes where there are no cells
            for plane in range(first_plane, after):
                for line in tl.static_range(0, SH):
                    samples = (plane * rows + y * SH + line) * row
                    for e in tl.static_range(-EX, EX + 1):
                        upstream, weight, py = _upstream(
                            grad, place, channel_rows, samples, x, x + e, slice_, part, total, W, SW, SLOTS, AXES
                        )
                        above += (weight * _triangle(py - centre + 1.0))[:, None] * upstream
                        here += (weight * _triangle(py - centre))[:, None] * upstream
                        below += (weight * _triangle(py - centre - 1.0))[:, None] * upstream
            _store_row(grad_value, above, n, z, y - 1, x0, channel, P, D, H, W, y > y0, SLOTS, BX, BC)
            above, here, below = here, below, tl.zeros((BX * SLOTS, BC), tl.float32)
    else:
        for y in range(y0, end):
            sums = tl.zeros((BX * SLOTS, BC), tl.float32)
            centre = y * 1.0
            for line in range(tl.maximum(y - EY, 0) * SH, tl.minimum(y + EY + 1, H) * SH):
                for plane in range(first_plane, last_plane):
                    samples = (plane * rows + line) * row
                    for e in range(-EX, EX + 1):
                        upstream, weight, py = _upstream(
                            grad, place, channel_rows, samples, x, x + e, slice_, part, total, W, SW, SLOTS, AXES
                        )
                        sums += (weight * _triangle(py - centre))[:, None] * upstream
            _store_row(grad_value, sums, n, z, y, x0, channel, P, D, H, W, True, SLOTS, BX, BC)


@triton.jit
def scatter_kernel(
    grad_value, grad, positions, C, P, D, H, W,
    SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, AXES: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Add BM samples of BC channels to the gradient of the value, float32, by atomic additions in any order.

    Nothing is masked there: samples and channels that do not exist add zeros, to a voxel of the map or to its padding.
    """
    n = tl.program_id(2)
    sample, inside, total, _, _, _ = _block(D, H, W, SD, SH, SW, BM)
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
        tl.atomic_add(neighbour, corner_weight[:, None] * upstream, sem="relaxed")
