"""Uring: io_uring from pure Python, one ring for all files of a context.

Three memory maps, one packed submission entry per request and one ``io_uring_enter`` for all that a turn of the loop
has brought together. Completions are looked at right after submitting, since on virtual machines a wake-up costs tens
of microseconds; those still missing wake the loop through the ring's own descriptor, which is readable while
completions lie in it (an eventfd would do the same and cost a read each time).

Reference: io_uring_setup(2), io_uring_enter(2), linux/io_uring.h. Every system call made here orders memory, and the
kernel's stores of a completion come before that of the tail, so plain loads and stores of the shared words do.
"""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import struct
from collections import deque
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from blockio.aio import syscalls
from blockio.aio.flight import ASYNC_TRANSFER, Flight
from blockio.aio.merging import MAX_MERGED, MAX_PARTS, follows, shares, vector_of
from blockio.aio.registered import RegisteredBuffers, checked, sys_register
from blockio.errors import BlockError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Buffer

    from blockio.aio.context import AioContext
    from blockio.aio.flight import Start

__all__ = ["ENTRIES", "Uring", "sys_enter", "sys_register", "sys_setup"]

ENTRIES: Final = 128
"""Requests in the kernel at once; more wait their turn here."""

INLINE_RUN: Final = 16
"""How many requests in a row may complete inside their own submission before the loop gets a turn."""

MAX_TRANSFER: Final = 0x7FFFF000
"""The most one Linux read or write moves, in bytes."""

_NR_SETUP: Final = 425
_NR_ENTER: Final = 426

_OP_READV: Final = 1
_OP_WRITEV: Final = 2
_OP_FSYNC: Final = 3
_OP_READ_FIXED: Final = 4
_OP_WRITE_FIXED: Final = 5
_OP_FALLOCATE: Final = 17
_OP_READ: Final = 22
_OP_WRITE: Final = 23
_NEEDED: Final = (_OP_READV, _OP_WRITEV, _OP_FSYNC, _OP_FALLOCATE, _OP_READ, _OP_WRITE)

_VECTORED: Final = {_OP_READ: _OP_READV, _OP_WRITE: _OP_WRITEV}
"""Of the operations that can be merged, the one that does several at once."""

_FSYNC_DATASYNC: Final = 1
_SQE_ASYNC: Final = 1 << 4
_SETUP_CLAMP: Final = 1 << 4
_SETUP_COOP_TASKRUN: Final = 1 << 8
"""Completions wait for our next system call instead of interrupting us, which on a virtual machine costs as much as the
request itself. Nothing is lost: they are looked at behind system calls only. Linux 5.19."""
_FEAT_NODROP: Final = 1 << 1
_REGISTER_PROBE: Final = 8
_OP_SUPPORTED: Final = 1

_OFF_SQ_RING: Final = 0
_OFF_CQ_RING: Final = 0x8000000
_OFF_SQES: Final = 0x10000000

_SQE: Final = struct.Struct("=BBHiQQIIQH22x")
"""opcode, flags, ioprio, fd, offset, address, length, per-operation flags, user_data, buffer; the rest is zero."""
_CQE: Final = struct.Struct("=QiI")
_IOVEC: Final = struct.Struct("@PN")

_NOT_NOW: Final = frozenset((-errno.EINTR, -errno.EAGAIN))
"""Results that say nothing of the request: a signal hit the kernel's worker, or it had no room. QEMU repeats too."""

_RETRY_DELAY: Final = 0.001
"""Seconds until the kernel is asked again that had no memory, or was disturbed."""


def sys_setup(entries: int, params: Any) -> int:
    """``io_uring_setup``: a descriptor, or OSError."""
    return checked(syscalls.libc().syscall(_NR_SETUP, entries, params))


def sys_enter(fd: int, to_submit: int) -> int:
    """``io_uring_enter`` without waiting: how many entries the kernel took."""
    return checked(syscalls.libc().syscall(_NR_ENTER, fd, to_submit, 0, 0, None, 0))


class _Op(Flight):
    """One request. ``slot`` is its number in the ring, -1 until the kernel may see it.

    ``entry`` is what the kernel is told, up to the slot: the first eight fields of ``_SQE``. ``alone``: it is not to be
    merged with its neighbours.
    """

    __slots__ = ("alone", "batch", "buffer", "done", "entry", "pins", "result", "ring", "slot", "waiter")

    def __init__(
        self,
        ring: Uring,
        opcode: int,
        fd: int,
        offset: int,
        address: int,
        length: int,
        flags: int,
        pins: object,
        sqe: int = 0,
        batch: int = 0,
        buffer: int = 0,
    ) -> None:
        self.legs = []
        self.error = None
        self.ring = ring
        self.batch = batch
        self.entry = (opcode, sqe, 0, fd, offset, address, length, flags)
        self.length = length
        self.pins = pins  # keeps the memory at ``address`` where it is
        self.buffer = buffer
        self.slot = -1
        self.alone = False
        self.done = False
        self.result = 0
        self.waiter: asyncio.Future[None] | None = None

    async def land(self) -> bool:
        try:
            if not self.done:
                # What ``ended`` does where nothing comes in between, without its frame.
                self.waiter = waiter = self.ring._create_future()
                try:
                    await waiter
                except asyncio.CancelledError:
                    await self.ring.cancelled(self)
                    raise
            result = self.result
            ok = (result if result >= 0 else await self.ring.ended(self)) == self.length
        except BaseException as error:
            self.error = error
            for leg in self.legs:
                leg(self, False)
            self.error = None  # it leads to this frame, and so to us
            raise
        for leg in self.legs:
            leg(self, ok)
        return ok


class _Merged(_Op):
    """Transfers side by side, which the kernel sees as one; they have its slot while it has them."""

    __slots__ = ("parts",)

    def __init__(self, ring: Uring, parts: list[_Op]) -> None:
        opcode, sqe, _, fd, offset, _, _, flags = parts[0].entry
        vector = vector_of(part.entry for part in parts)
        pin = ring._from_buffer(vector)
        super().__init__(ring, _VECTORED[opcode], fd, offset, ring._addressof(pin), len(parts), flags, pin, sqe)
        self.parts = parts


_refused: WeakKeyDictionary[AioContext, OSError] = WeakKeyDictionary()


class Uring:
    """The ring of one context; all methods are called in its thread.

    Invariant: an operation is in ``_queue`` (``slot`` -1, the kernel knows nothing of it) or, by itself or as a part of
    a ``_Merged`` one, in ``_ops[slot]`` (the kernel owns its memory) or done. There are ``ENTRIES`` slots, as many as
    submission entries and at most as many as completion entries, so neither ring can overflow. ``_unsent`` entries lie
    in the submission ring and were not taken yet. A flush is scheduled whenever ``_queue`` is not empty, a slot is free
    and no plug is in.
    """

    name = "io_uring"

    def __init__(self, context: AioContext) -> None:
        """OSError where the kernel has no io_uring, forbids it, or lacks an operation needed here."""
        import ctypes  # milliseconds, which programs without slow I/O need not spend

        self._addressof = ctypes.addressof
        self._from_buffer: Callable[[Any], Any] = ctypes.c_char.from_buffer
        self._loop = context.loop
        self._create_future = context.loop.create_future
        self._enter = sys_enter
        params = bytearray(120)
        struct.pack_into("=I", params, 8, _SETUP_CLAMP | _SETUP_COOP_TASKRUN)
        try:
            self._fd = sys_setup(ENTRIES, (ctypes.c_char * 120).from_buffer(params))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            struct.pack_into("=I", params, 8, _SETUP_CLAMP)  # an older kernel
            self._fd = sys_setup(ENTRIES, (ctypes.c_char * 120).from_buffer(params))
        self._maps: list[mmap.mmap] = []
        try:
            self._check_features(params)
            self._map(params)
            self.buffers = RegisteredBuffers(self._fd)
            self._loop.add_reader(self._fd, self._wake)
        except BaseException:
            self._release()
            raise
        self._free = list(range(self._entries))
        self._ops: list[_Op | None] = [None] * self._entries
        self._queue: deque[_Op] = deque()
        self._in_flight = 0
        self._unsent = 0
        self._plugs = 0
        self._scheduled = False
        self._inline_left = INLINE_RUN
        self._closing = False

    @classmethod
    def probe(cls, context: AioContext) -> OSError | None:
        """Why *context* cannot have a ring, or None. Asked of the kernel once per context."""
        return _refused.get(context)

    @classmethod
    def acquire(cls, context: AioContext) -> Uring:
        """The context's ring, to be given back with ``context.unshare(Uring)``; OSError where it cannot have one."""
        refused = _refused.get(context)
        if refused is not None:
            raise OSError(refused.errno, refused.strerror)
        try:
            return context.share(cls, lambda: cls(context))
        except OSError as error:
            _refused[context] = OSError(error.errno, error.strerror)
            raise

    @classmethod
    def busy(cls, context: AioContext) -> bool:
        """Whether the context has a ring with requests in the kernel."""
        ring = context.shared(cls)
        return ring is not None and ring._in_flight > 0

    def _check_features(self, params: bytearray) -> None:
        import ctypes

        (features,) = struct.unpack_from("=I", params, 20)
        if not features & _FEAT_NODROP:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        probe = bytearray(16 + 8 * 64)
        sys_register(self._fd, _REGISTER_PROBE, (ctypes.c_char * len(probe)).from_buffer(probe), 64)
        for opcode in _NEEDED:
            if not probe[16 + 8 * opcode + 2] & _OP_SUPPORTED:
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def _map(self, params: bytearray) -> None:
        sq_entries, cq_entries = struct.unpack_from("=II", params, 0)
        _, sq_tail, sq_mask, _, _, _, sq_array = struct.unpack_from("=7I", params, 40)
        cq_head, cq_tail, cq_mask, _, _, cqes = struct.unpack_from("=6I", params, 80)
        self._entries: int = sq_entries

        def share(nbytes: int, offset: int) -> mmap.mmap:
            shared = mmap.mmap(self._fd, nbytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset)
            self._maps.append(shared)
            return shared

        sq = share(sq_array + 4 * sq_entries, _OFF_SQ_RING)
        cq = share(cqes + _CQE.size * cq_entries, _OFF_CQ_RING)
        self._sqes = share(_SQE.size * sq_entries, _OFF_SQES)
        self._cq = cq
        self._sq_words = memoryview(sq).cast("I")
        self._cq_words = memoryview(cq)[: cqes // 4 * 4].cast("I")
        self._sq_tail_at = sq_tail // 4
        self._cq_head_at = cq_head // 4
        self._cq_tail_at = cq_tail // 4
        self._cqes_at = cqes
        self._sq_mask: int = self._sq_words[sq_mask // 4]
        self._cq_mask: int = self._cq_words[cq_mask // 4]
        self._sq_tail: int = self._sq_words[sq_tail // 4]
        self._cq_head: int = self._cq_words[cq_head // 4]
        for index in range(sq_entries):
            self._sq_words[sq_array // 4 + index] = index  # the n-th entry of the ring is always the n-th SQE

    def _release(self) -> None:
        for words in ("_sq_words", "_cq_words"):
            view: memoryview | None = self.__dict__.get(words)
            if view is not None:
                view.release()
        for shared in self._maps:
            shared.close()  # each holds a duplicate of the descriptor
        os.close(self._fd)

    def close(self) -> None:
        """Give the ring back; with requests still in the kernel, when the last of them is done."""
        self._closing = True
        if not self._in_flight:
            self._loop.remove_reader(self._fd)
            self._release()

    # -- requests; each is one system call's worth, which may transfer less than asked

    async def read(self, fd: int, offset: int, views: list[memoryview], batch: int = 0) -> int:
        """As ``preadv``; *batch* requests (0: ``ENTRIES``) are submitted without waiting for the turn's end."""
        if len(views) == 1:
            view = views[0]
            length = view.nbytes
            pin = self._from_buffer(view)
            sqe = _SQE_ASYNC if length >= ASYNC_TRANSFER else 0
            address = self._addressof(pin)
            opcode, slot = _OP_READ, 0
            if self.buffers and (slot := self.buffers.find(address, length)) >= 0:
                opcode = _OP_READ_FIXED
            length = min(length, MAX_TRANSFER)
            op = _Op(self, opcode, fd, offset, address, length, 0, pin, sqe, batch, max(slot, 0))
        else:
            op = self._vectored(_OP_READV, fd, offset, views, 0, batch)
        return await self._done(op)

    async def write(self, fd: int, offset: int, views: list[memoryview], rwf: int, batch: int = 0) -> int:
        """As ``pwritev`` with RWF flags *rwf*; *batch* as for ``read``."""
        if len(views) == 1:
            view = views[0]
            if view.readonly:
                address, pin = syscalls.address_of(view), view
            else:
                pin = self._from_buffer(view)
                address = self._addressof(pin)
            opcode, slot = _OP_WRITE, 0
            if self.buffers and (slot := self.buffers.find(address, view.nbytes)) >= 0:
                opcode = _OP_WRITE_FIXED
            length = min(view.nbytes, MAX_TRANSFER)
            op = _Op(self, opcode, fd, offset, address, length, rwf, pin, 0, batch, max(slot, 0))
        else:
            op = self._vectored(_OP_WRITEV, fd, offset, views, rwf, batch)
        return await self._done(op)

    def _vectored(self, opcode: int, fd: int, offset: int, views: list[memoryview], rwf: int, batch: int) -> _Op:
        vector = bytearray(_IOVEC.size * len(views))
        pins: list[object] = [vector]
        total = 0
        for index, view in enumerate(views):
            if view.readonly:
                pin: Any = view
                address = syscalls.address_of(view)
            else:
                pin = self._from_buffer(view)
                address = self._addressof(pin)
            pins.append(pin)
            total += view.nbytes
            _IOVEC.pack_into(vector, _IOVEC.size * index, address, view.nbytes)
        pin = self._from_buffer(vector)
        pins.append(pin)
        sqe = _SQE_ASYNC if opcode == _OP_READV and total >= ASYNC_TRANSFER else 0
        return _Op(self, opcode, fd, offset, self._addressof(pin), len(views), rwf, pins, sqe, batch)

    async def fdatasync(self, fd: int) -> None:
        """As ``fdatasync``."""
        await self._done(_Op(self, _OP_FSYNC, fd, 0, 0, 0, _FSYNC_DATASYNC, None))

    async def fallocate(self, fd: int, mode: int, offset: int, nbytes: int) -> None:
        """As ``fallocate`` with FALLOC_FL flags *mode*."""
        await self._done(_Op(self, _OP_FALLOCATE, fd, offset, nbytes, mode, 0, None))

    def starter(self, fd: int, *, writes: bool, direct: bool, alignment: int, batch: int) -> Start:
        """The start of transfers on *fd* without a coroutine: of one buffer at a multiple of *alignment*.

        *direct*: nothing is copied, so no size needs a kernel worker.
        """
        opcode, fixed = (_OP_WRITE, _OP_WRITE_FIXED) if writes else (_OP_READ, _OP_READ_FIXED)
        from_buffer, addressof, registered, find = (
            self._from_buffer,
            self._addressof,
            self.buffers.addresses,
            self.buffers.find,
        )
        mask = alignment - 1
        by_worker = MAX_TRANSFER if writes or direct else ASYNC_TRANSFER  # a buffered write goes to one by itself

        def start(offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None:
            if len(bufs) != 1 or nbytes > MAX_TRANSFER:
                return None
            try:
                pin = from_buffer(bufs[0])
            except (TypeError, ValueError, BufferError):
                return None  # read-only memory, or with gaps: the slow lane knows what to do with it
            address = addressof(pin)
            if address & mask:
                return None
            sqe = _SQE_ASYNC if nbytes >= by_worker else 0
            if registered and (slot := find(address, nbytes)) >= 0:
                op = _Op(self, fixed, fd, offset, address, nbytes, 0, pin, sqe, batch, slot)
            else:
                op = _Op(self, opcode, fd, offset, address, nbytes, 0, pin, sqe, batch)
            self._submit(op)
            return op

        return start

    async def _done(self, op: _Op) -> int:
        """Submit *op* and wait; its result, or BlockError."""
        self._submit(op)
        return await self.ended(op)

    def _submit(self, op: _Op) -> None:
        queue = self._queue
        queue.append(op)
        if not (self._in_flight or self._plugs or len(queue) > 1) and self._inline_left:
            # Alone: nothing to wait for and gather. What the page cache holds is complete when this returns.
            self._inline_left -= 1
            self._flush()
        elif len(queue) >= (op.batch or self._entries):
            self._flush()
        elif op.length >= ASYNC_TRANSFER and not self._plugs:
            # Whoever comes next in this turn may copy as much in the loop's thread: meanwhile the kernel can begin.
            self._flush()
        elif not (self._scheduled or self._plugs):
            self._scheduled = True
            self._loop.call_soon(self._flush_soon)

    async def ended(self, op: _Op) -> int:
        """Wait for *op*, which was submitted; its result, or BlockError.

        Cancelled before the kernel saw it, it is withdrawn. Later it is awaited to its end, for its memory is the
        kernel's until then, and CancelledError goes on.
        """
        while True:
            if not op.done:
                op.waiter = self._loop.create_future()
                try:
                    await op.waiter
                except asyncio.CancelledError:
                    await self.cancelled(op)
                    raise
            if op.result >= 0:
                return op.result
            if op.result not in _NOT_NOW:
                raise BlockError(errno=-op.result)
            await asyncio.sleep(_RETRY_DELAY)
            op.done, op.slot, op.waiter = False, -1, None
            self._submit(op)

    async def cancelled(self, op: _Op) -> None:
        """Who awaited *op* was cancelled: take it back, or wait until its memory is no longer the kernel's."""
        if op.slot < 0 and not op.done:
            self._queue.remove(op)
            return
        while not op.done:
            op.waiter = self._loop.create_future()
            try:
                await op.waiter
            except asyncio.CancelledError:
                continue

    # -- registered buffers

    def register_buf(self, memory: memoryview) -> bool:
        """See ``RegisteredBuffers.add``."""
        return self.buffers.add(syscalls.address_of(memory), memory.nbytes)

    def unregister_buf(self, memory: memoryview) -> None:
        """See ``RegisteredBuffers.remove``."""
        self.buffers.remove(syscalls.address_of(memory))

    # -- batches

    def plug(self) -> None:
        """Hold submissions back until ``unplug``; nests. A full queue goes all the same."""
        self._plugs += 1

    def unplug(self) -> None:
        """Undo one ``plug``; the last one submits what has gathered."""
        self._plugs -= 1
        if not self._plugs:
            self._flush()

    def _flush_soon(self) -> None:
        self._scheduled = False
        if not self._plugs:
            self._inline_left = INLINE_RUN
            self._flush()

    def _flush(self) -> None:
        """Hand the queue to the kernel, as far as there are slots, and look at what is done already."""
        while True:
            self._fill()
            if not self._unsent:
                return
            try:
                taken = self._enter(self._fd, self._unsent)
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno in {errno.EAGAIN, errno.EBUSY, errno.ENOMEM}:
                    self._reap()
                    self._loop.call_later(_RETRY_DELAY, self._retry)
                    return
                self._refuse(error.errno or errno.EIO)
                return
            self._unsent -= taken
            self._reap()
            if not (self._unsent or (self._queue and self._free)):
                return

    def _retry(self) -> None:
        if self._unsent:
            self._flush()

    def _refuse(self, code: int) -> None:
        """The kernel will not take what lies in the submission ring: take it back, and fail it."""
        tail = self._sq_tail
        for _ in range(self._unsent):
            tail = (tail - 1) & 0xFFFFFFFF
            slot = _SQE.unpack_from(self._sqes, (tail & self._sq_mask) * 64)[8]
            self._complete(slot, -code)
        self._unsent = 0
        self._sq_tail = self._sq_words[self._sq_tail_at] = tail

    def _complete(self, slot: int, result: int) -> None:
        op = self._ops[slot]
        assert op is not None
        self._ops[slot] = None
        self._free.append(slot)
        self._in_flight -= 1
        if type(op) is not _Merged:  # the same as ``_end``, without its frame
            op.result = result
            op.done = True
            if result >= 0 or result not in _NOT_NOW:
                op.pins = None
            waiter = op.waiter
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
            return
        for part, share in zip(op.parts, shares(result, [part.length for part in op.parts]), strict=True):
            if share is None:
                self._submit_alone(part)
            else:
                self._end(part, share)

    def _end(self, op: _Op, result: int) -> None:
        op.result = result
        op.done = True
        if result >= 0 or result not in _NOT_NOW:  # else it goes once more
            op.pins = None
        waiter = op.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _fill(self) -> None:
        queue, free, ops, sqes, tail, mask = (
            self._queue,
            self._free,
            self._ops,
            self._sqes,
            self._sq_tail,
            self._sq_mask,
        )
        count = 0
        while queue and free:
            op = queue.popleft()
            if queue and queue[0].entry[4] == op.entry[4] + op.length:
                op = self._merged(op)
            slot = op.slot = free.pop()
            ops[slot] = op
            _SQE.pack_into(sqes, ((tail + count) & mask) * 64, *op.entry, slot, op.buffer)
            count += 1
        if count:
            self._in_flight += count
            self._unsent += count
            self._sq_tail = self._sq_words[self._sq_tail_at] = (tail + count) & 0xFFFFFFFF

    def _merged(self, first: _Op) -> _Op:
        """*first* with those that follow it in the queue and on the disk, or by itself."""
        queue, reach, parts = self._queue, first.entry[4] + first.length, [first]
        if first.alone or first.entry[0] not in _VECTORED:
            return first
        end = first.entry[4] + MAX_MERGED
        while queue and len(parts) < MAX_PARTS and not (op := queue[0]).alone and reach + op.length <= end:
            if not follows(op.entry, first.entry, reach):
                break
            parts.append(queue.popleft())
            reach += op.length
        if len(parts) == 1:
            return first
        merged = _Merged(self, parts)
        for part in parts:
            part.slot = self._free[-1]  # the one that it gets: from here on the kernel has their memory
        return merged

    def _submit_alone(self, op: _Op) -> None:
        """What was merged in vain goes again, by whoever flushes next: we may be in the middle of the completions."""
        op.alone = True
        op.slot = -1
        self._queue.append(op)
        if not self._scheduled and not self._plugs:
            self._scheduled = True
            self._loop.call_soon(self._flush_soon)

    def _wake(self) -> None:
        """The loop saw completions."""
        self._inline_left = INLINE_RUN
        self._reap()
        if self._queue and self._free and not self._scheduled and not self._plugs:
            self._flush()

    def _reap(self) -> None:
        words, head = self._cq_words, self._cq_head
        tail = words[self._cq_tail_at]
        if head == tail:
            return
        completions, at, mask, complete, unpack = (
            self._cq,
            self._cqes_at,
            self._cq_mask,
            self._complete,
            _CQE.unpack_from,
        )
        while head != tail:
            slot, result, _ = unpack(completions, at + (head & mask) * 16)
            head = (head + 1) & 0xFFFFFFFF
            complete(slot, result)
        self._cq_head = words[self._cq_head_at] = head
        if self._closing and not self._in_flight:
            self._loop.remove_reader(self._fd)
            self._release()
