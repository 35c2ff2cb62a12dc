"""The kernels of the selective scan on CUDA, in Triton.

The sequence is cut into chunks of CHUNK steps, and each program computes one: ``ends_kernel`` scans every chunk from a
state of zero and stores only the last state, ``starts_kernel`` carries these states from chunk to chunk, and
``outputs_kernel`` scans every chunk again from its true state. The backward pass does the same in reversed time;
``gradients_kernel`` recomputes the states of a chunk, BT steps at a time.

Maps are channels-last, (N, L, E) and (N, L, S): the channels of one step are contiguous. A program has one case and BE
channels with all their states; the number of states is padded to BS, a power of two. All arithmetic is float32; B and C
are float32 in memory, and the other maps keep their dtype. Steps beyond the end have a step size of zero, which leaves
the state as it is. Rates are those of A times log2(e), because GPUs compute exp2.

A tile of states has the shape (BT, BE, BS). A thread holds all BT steps of its states, so the recurrence along them is
a sequence of instructions on registers.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
# Arguments whose values do not change the compiled code, so that a network with maps of many sizes compiles once.
UNSPECIALIZED = ("L", "chunks", "blocks", "cases", "first")


@triton.jit
def _place(program, chunks, blocks, BE: tl.constexpr, BS: tl.constexpr):
    """Case, chunk, block of channels, channels (BE,) and states (BS,) of a program."""
    block = program % blocks
    chunk = (program // blocks) % chunks
    case = (program // blocks // chunks).to(tl.int64)
    return case, chunk, block, block * BE + tl.arange(0, BE), tl.arange(0, BS)


@triton.jit
def _load_rates(A, element, inside):
    return tl.load(A + element, mask=inside, other=0.0).to(tl.float32) * LOG2_E


@triton.jit
def _load_rows(tensor, origin, place, kept, channel, E):
    """The rows origin + place of (.., E) for some channels: (BT, BE) in float32, with zeros beyond the ends."""
    at = tensor + origin * E + (place[:, None] * E + channel[None, :])
    return tl.load(at, mask=kept[:, None] & (channel < E)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _store_rows(tensor, values, origin, place, kept, channel, E):
    at = tensor + origin * E + (place[:, None] * E + channel[None, :])
    tl.store(at, values.to(tensor.dtype.element_ty), mask=kept[:, None] & (channel < E)[None, :])


@triton.jit
def _load_states(tensor, origin, place, kept, state, S, BE: tl.constexpr, BS: tl.constexpr):
    """The rows origin + place of (.., S), repeated for all channels: (BT, BE, BS).

    They are loaded in this shape, because the load decides how Triton distributes tiles over threads: four states of a
    channel and all steps in each thread. Triton gives lanes to the axes in the order of their contiguity. So that the
    channels come before the steps in all versions of Triton, they are declared contiguous, although their addresses are
    the same; only the states, which are contiguous, are loaded as vectors.
    """
    zero = tl.multiple_of(tl.arange(0, BE) >> 16, 16)  # not a constant, which Triton would remove
    at = tensor + origin * S + (place[:, None, None] * S + state[None, None, :] + zero[None, :, None])
    if BS >= 4:
        at = tl.max_contiguous(at, [1, 2, 4])
    return tl.load(at, mask=kept[:, None, None] & (state < S)[None, None, :], other=0.0)


@triton.jit
def _is_step(index, BT: tl.constexpr):
    return (tl.arange(0, BT) == index)[:, None, None]


@triton.jit
def _step(tile, index, BT: tl.constexpr):
    """(BT, BE, BS) to (BE, BS)"""
    return tl.sum(tl.where(_is_step(index, BT), tile, 0.0), axis=0)


@triton.jit
def _scan(state, decay, added, BT: tl.constexpr):
    """The states decay * state + added of a tile, (BT, BE, BS), and the last of them, (BE, BS)."""
    states = added
    for t in tl.static_range(BT):
        state = _step(decay, t, BT) * state + _step(added, t, BT)
        states = tl.where(_is_step(t, BT), state[None, :, :], states)
    return states, state


@triton.jit(do_not_specialize=UNSPECIALIZED)
def ends_kernel(
    ends, times, delta, left, right, A, L, E, S, chunks, blocks,
    REVERSE: tl.constexpr, CHUNK: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """The last state of each chunk that starts at zero, (N, chunks, E, S), and its sum of step sizes, (N, chunks, E).

    ``left`` is u and ``right`` B. With REVERSE they are the gradient of y and C, and the result is the gradient with
    respect to the state before the chunk.
    """
    case, chunk, _block, channel, state = _place(tl.program_id(0), chunks, blocks, BE, BS)
    element = channel[:, None] * S + state[None, :]
    inside = (channel < E)[:, None] & (state < S)[None, :]
    rate = _load_rates(A, element, inside)
    end = tl.zeros((BE, BS), tl.float32)
    time = tl.zeros((BE,), tl.float32)
    origin = case * L + chunk * CHUNK
    for tile in range(CHUNK // BT):
        place = tile * BT + tl.arange(0, BT)
        place = CHUNK - 1 - place if REVERSE else place
        kept = chunk * CHUNK + place < L
        d = _load_rows(delta, origin, place, kept, channel, E)
        x = _load_rows(left, origin, place, kept, channel, E)
        if not REVERSE:
            x *= d
        decay = tl.exp2(d[:, :, None] * rate[None, :, :])
        added = x[:, :, None] * _load_states(right, origin, place, kept, state, S, BE, BS)
        if REVERSE:
            added *= decay
        _states, end = _scan(end, decay, added, BT)
        time += tl.sum(d, axis=0)
    part = case * chunks + chunk
    tl.store(times + part * E + channel, time, mask=channel < E)
    tl.store(ends + part * E * S + element, end, mask=inside)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def starts_kernel(
    starts, ends, times, A, E, S, chunks, blocks, REVERSE: tl.constexpr, BC: tl.constexpr, BM: tl.constexpr
):
    """The state before each chunk, (N, chunks, E, S), from the results of ``ends_kernel``; with REVERSE the gradient
    with respect to the state after it. A program has BM elements of (E, S), and reads BC chunks at a time."""
    case = (tl.program_id(0) // blocks).to(tl.int64)
    element = (tl.program_id(0) % blocks) * BM + tl.arange(0, BM)[None, :]
    inside = element < E * S
    rate = _load_rates(A, element, inside)
    state = tl.zeros((1, BM), tl.float32)
    for begin in range(0, chunks, BC):
        place = begin + tl.arange(0, BC)
        chunk = chunks - 1 - place if REVERSE else place
        part = (case * chunks + chunk)[:, None]
        kept = (place < chunks)[:, None] & inside
        decay = tl.exp2(tl.load(times + part * E + element // S, mask=kept, other=0.0) * rate)[:, None, :]
        end = tl.load(ends + part * E * S + element, mask=kept, other=0.0)[:, None, :]
        # the state before a chunk is the one after the chunk before
        befores = end
        for c in tl.static_range(BC):
            befores = tl.where(_is_step(c, BC), state[None, :, :], befores)
            state = _step(decay, c, BC) * state + _step(end, c, BC)
        tl.store(starts + part * E * S + element, tl.reshape(befores, (BC, BM)), mask=kept)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def outputs_kernel(
    y, starts, u, delta, A, B, C, D, L, E, S, chunks, blocks,
    HAS_D: tl.constexpr, CHUNK: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """y of a chunk."""
    case, chunk, _block, channel, state = _place(tl.program_id(0), chunks, blocks, BE, BS)
    element = channel[:, None] * S + state[None, :]
    inside = (channel < E)[:, None] & (state < S)[None, :]
    rate = _load_rates(A, element, inside)
    before = tl.load(starts + (case * chunks + chunk) * E * S + element, mask=inside, other=0.0)
    skip = tl.zeros((BE,), tl.float32)
    if HAS_D:
        skip = tl.load(D + channel, mask=channel < E, other=0.0).to(tl.float32)
    origin = case * L + chunk * CHUNK
    for tile in range(CHUNK // BT):
        place = tile * BT + tl.arange(0, BT)
        kept = chunk * CHUNK + place < L
        d = _load_rows(delta, origin, place, kept, channel, E)
        x = _load_rows(u, origin, place, kept, channel, E)
        decay = tl.exp2(d[:, :, None] * rate[None, :, :])
        added = (d * x)[:, :, None] * _load_states(B, origin, place, kept, state, S, BE, BS)
        states, before = _scan(before, decay, added, BT)
        read = tl.sum(states * _load_states(C, origin, place, kept, state, S, BE, BS), axis=2)
        if HAS_D:
            read += skip[None, :] * x
        _store_rows(y, read, origin, place, kept, channel, E)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def gradients_kernel(
    grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, scratch, grad_y, starts, laters, u, delta, A, B, C, D,
    L, E, S, chunks, blocks, cases, first,
    HAS_D: tl.constexpr, CHUNK: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """The gradients of a chunk, by the programs from ``first`` on.

    ``laters``, (N, chunks, E, S), are the gradients with respect to the state after each chunk. The gradients of A and
    D are partial sums for each case and chunk, those of B and C for each block of channels. In ``scratch``, (programs,
    CHUNK // BT, BE, BS), a program keeps the state before each tile.
    """
    tiles: tl.constexpr = CHUNK // BT
    own = (tl.arange(0, BE) * BS)[:, None] + tl.arange(0, BS)[None, :]
    own += scratch + tl.program_id(0).to(tl.int64) * tiles * BE * BS
    case, chunk, block, channel, state = _place(first + tl.program_id(0), chunks, blocks, BE, BS)
    element = channel[:, None] * S + state[None, :]
    inside = (channel < E)[:, None] & (state < S)[None, :]
    rate = _load_rates(A, element, inside)
    part = case * chunks + chunk
    origin = case * L + chunk * CHUNK
    parts = block.to(tl.int64) * cases * L + origin

    before = tl.load(starts + part * E * S + element, mask=inside, other=0.0)
    for tile in range(tiles):
        tl.store(own + tile * BE * BS, before)
        place = tile * BT + tl.arange(0, BT)
        kept = chunk * CHUNK + place < L
        d = _load_rows(delta, origin, place, kept, channel, E)
        x = _load_rows(u, origin, place, kept, channel, E)
        decay = tl.exp2(d[:, :, None] * rate[None, :, :])
        added = (d * x)[:, :, None] * _load_states(B, origin, place, kept, state, S, BE, BS)
        _states, before = _scan(before, decay, added, BT)
    tl.debug_barrier()  # a thread may read what another one has stored

    skip = tl.zeros((BE,), tl.float32)
    if HAS_D:
        skip = tl.load(D + channel, mask=channel < E, other=0.0).to(tl.float32)
    by_D = tl.zeros((BE,), tl.float32)
    by_A = tl.zeros((BE, BS), tl.float32)
    later = tl.load(laters + part * E * S + element, mask=inside, other=0.0)
    for turn in range(tiles):
        tile = tiles - 1 - turn
        before = tl.load(own + tile * BE * BS)
        place = tile * BT + tl.arange(0, BT)
        kept = chunk * CHUNK + place < L
        d = _load_rows(delta, origin, place, kept, channel, E)
        x = _load_rows(u, origin, place, kept, channel, E)
        dy = _load_rows(grad_y, origin, place, kept, channel, E)
        decay = tl.exp2(d[:, :, None] * rate[None, :, :])

        added = (d * x)[:, :, None] * _load_states(B, origin, place, kept, state, S, BE, BS)
        decayed = added  # exp(delta A) times the state of the step before
        for t in tl.static_range(BT):
            before = _step(decay, t, BT) * before
            decayed = tl.where(_is_step(t, BT), before[None, :, :], decayed)
            before += _step(added, t, BT)
        by_C = tl.sum(dy[:, :, None] * (decayed + added), axis=1)
        _store_rows(grad_C, by_C, parts, place, kept, state, S)

        grad = dy[:, :, None] * _load_states(C, origin, place, kept, state, S, BE, BS)  # with respect to the states
        for back in tl.static_range(BT):
            later += _step(grad, BT - 1 - back, BT)
            grad = tl.where(_is_step(BT - 1 - back, BT), later[None, :, :], grad)
            later *= _step(decay, BT - 1 - back, BT)
        by_B = tl.sum((d * x)[:, :, None] * grad, axis=1)
        _store_rows(grad_B, by_B, parts, place, kept, state, S)

        # B is loaded again, because registers are what these kernels have least of
        entered = tl.sum(
            grad * _load_states(B, origin, place, kept, state, S, BE, BS), axis=2
        )  # with respect to delta * u
        grad *= decayed  # with respect to delta * A
        by_A += tl.sum(grad * d[:, :, None], axis=0)
        by_delta = x * entered + tl.sum(grad * rate[None, :, :], axis=2) / LOG2_E
        by_u = d * entered
        if HAS_D:
            by_u += skip[None, :] * dy
            by_D += tl.sum(dy * x, axis=0)
        _store_rows(grad_delta, by_delta, origin, place, kept, channel, E)
        _store_rows(grad_u, by_u, origin, place, kept, channel, E)
    tl.store(grad_A + part * E * S + element, by_A, mask=inside)
    if HAS_D:
        tl.store(grad_D + part * E + channel, by_D, mask=channel < E)
