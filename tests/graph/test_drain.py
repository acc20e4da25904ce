"""Drained sections: who is quiet when, nested and while the graph changes, and never a hang."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from blockio.buffers import IoVector
from blockio.driver.gate import AllowAll
from blockio.errors import BlockError
from blockio.graph.drain import (
    RequestScope,
    current_requests,
    drain_all_begin,
    drain_all_end,
    drained,
    drained_all,
    drained_begin,
    drained_end,
)
from blockio.graph.edge import Edge
from blockio.graph.mutate import attach_child, detach_child, replace_child
from blockio.graph.node import BlockNode
from blockio.graph.open import open_node
from blockio.types import Perm, Role
from tests.graph.rig import Path, Store, User, image, world

READ = Perm.CONSISTENT_READ


async def store(name: str = "img", **options: str) -> BlockNode:
    return await open_node(options={"driver": "toy-store", "filename": name, **options}, path_factory=Path)


async def over(node: BlockNode, driver: str = "raw") -> BlockNode:
    return await open_node(options={"driver": driver, "file": node.node_name}, path_factory=Path)


def use(user: User, node: BlockNode) -> Edge:
    return attach_child(user, node, "root", Role.FILTERED | Role.PRIMARY, READ)


def path_of(node: BlockNode) -> Path:
    assert isinstance(node.path, Path)
    return node.path


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@contextmanager
def disks() -> Iterator[None]:
    with world(img=bytes(512), other=bytes(512)):
        yield


async def close(*nodes: BlockNode) -> None:
    for node in nodes:
        assert node.quiesce_counter == 0
        await node.unref()


# -- quiet upwards


async def test_everybody_above_becomes_quiet_and_goes_on() -> None:
    with disks():
        base = await store()
        middle, user, direct = await over(base), User(), User()
        edges = use(user, middle), use(direct, base)
        async with drained(base):
            assert (user.quiesced, direct.quiesced) == (1, 1)
            assert (base.quiesce_counter, middle.quiesce_counter) == (1, 1)
        assert (user.quiesced, direct.quiesced) == (0, 0)
        async with drained(middle):
            assert (user.quiesced, direct.quiesced) == (1, 0)
            assert base.quiesce_counter == 0  # those below may serve others
        for edge in edges:
            await detach_child(edge)
        await close(middle, base)


async def test_sections_nest() -> None:
    with disks():
        base = await store()
        middle, user = await over(base), User()
        edge = use(user, middle)
        async with drained(base), drained(middle), drained(base):
            assert middle.quiesce_counter == 2
        assert user.told == [f"attached {middle.node_name}", "quiet", "go on"]
        await detach_child(edge)
        await close(middle, base)


async def test_an_end_without_a_beginning_is_a_mistake() -> None:
    with disks():
        base = await store()
        with pytest.raises(RuntimeError, match="not drained"):
            drained_end(base)
        with pytest.raises(RuntimeError, match="no drain-all"):
            drain_all_end()
        await close(base)


async def test_a_chain_as_long_as_they_come() -> None:
    depth = 200
    images = {f"d{n}": image(backing=f"toy-store:d{n + 1}", format="toy") for n in range(depth)}
    with world(**images, **{f"d{depth}": image()}):
        top, user = await open_node("toy-store:d0", path_factory=Path, gate=AllowAll()), User()
        edge = use(user, top)
        base = top
        while (backing := base.backing) is not None:
            base = backing.node
        async with drained(base.children["file"].node):
            assert user.quiesced == 1
            with RequestScope(user), pytest.raises(RuntimeError, match="would never end"):
                await drained_begin(base)
        assert user.quiesced == 0
        await detach_child(edge)
        await close(top)


# -- waiting


async def test_requests_in_flight_are_waited_for() -> None:
    with disks():
        base = await store()
        middle = await over(base)
        path_of(middle).hold = gate = asyncio.Event()
        request = asyncio.ensure_future(middle.path.co_preadv(0, IoVector.of(bytearray(1))))
        await turns()
        drain = asyncio.ensure_future(drained_begin(base))
        await turns()
        assert not drain.done()
        gate.set()
        await drain
        assert request.done()
        drained_end(base)
        await close(middle, base)


async def test_a_parent_that_is_busy_is_waited_for_until_it_kicks() -> None:
    with disks():
        base, user = await store(), User()
        edge = use(user, base)
        user.busy = True
        drain = asyncio.ensure_future(drained_begin(base))
        await turns()
        base.kick()  # for nothing
        await turns()
        assert not drain.done()
        user.busy = False
        base.kick()
        await drain
        drained_end(base)
        await detach_child(edge)
        await close(base)


async def test_two_drains_wait_side_by_side() -> None:
    with disks():
        base, user = await store(), User()
        edge = use(user, base)
        user.busy = True
        drains = [asyncio.ensure_future(drained_begin(base)) for _ in range(2)]
        await turns()
        user.busy = False
        base.kick()
        await asyncio.gather(*drains)
        assert base.quiesce_counter == 2
        drained_end(base)
        drained_end(base)
        await detach_child(edge)
        await close(base)


@pytest.mark.parametrize("after", range(4))
async def test_a_cancelled_drain_is_no_section(after: int) -> None:
    with disks():
        base, user = await store(), User()
        edge = use(user, base)
        user.busy = True
        drain = asyncio.ensure_future(drained_begin(base))
        await turns(after)
        drain.cancel()
        await asyncio.wait([drain])
        assert drain.cancelled()
        assert (base.quiesce_counter, user.quiesced) == (0, 0)
        user.busy = False
        async with drained(base):  # and it works
            assert user.quiesced == 1
        await detach_child(edge)
        await close(base)


async def test_a_body_that_fails_ends_its_section() -> None:
    with disks():
        base = await store()
        with pytest.raises(BlockError):
            async with drained(base):
                raise BlockError
        await close(base)


# -- drivers that have something to stop


async def test_a_drivers_background_work_is_stopped_first() -> None:
    with disks():
        base = await store()
        sieve = await over(base, "toy-filter")
        async with drained(base):
            assert Store.log[-1] == f"drain {sieve.node_name}"
            async with drained(sieve):
                pass
            assert Store.log[-1] == f"drain {sieve.node_name}"  # only once
        await turns()
        assert Store.log[-1] == f"undrain {sieve.node_name}"
        await close(sieve, base)


async def test_quick_sections_leave_the_driver_as_it_was() -> None:
    with disks():
        base = await store()
        sieve = await over(base, "toy-filter")
        for _ in range(3):
            async with drained(sieve):
                pass
        await turns()
        hooks = [line.split()[0] for line in Store.log if "drain" in line]
        assert hooks[0] == "drain"
        assert hooks[-1] == "undrain"
        assert hooks.count("drain") == hooks.count("undrain")
        await close(sieve, base)


# -- while the graph changes


async def test_who_joins_a_drained_node_is_quiet_until_it_leaves() -> None:
    with disks():
        base, user = await store(), User()
        async with drained(base):
            edge = use(user, base)
            assert user.quiesced == 1
            await detach_child(edge)
            assert user.quiesced == 0
            edge = use(user, base)
        assert user.quiesced == 0
        await detach_child(edge)
        await close(base)


async def test_moving_between_drained_and_running_nodes() -> None:
    with disks():
        base, other, user = await store(), await store("other"), User()
        edge = use(user, base)
        async with drained(other):
            await replace_child(edge, other)
            assert user.quiesced == 1
            await replace_child(edge, base)
            assert user.quiesced == 0
        async with drained(base):
            await replace_child(edge, other)
            assert user.quiesced == 0
        assert (base.quiesce_counter, other.quiesce_counter) == (0, 0)
        await detach_child(edge)
        await close(base, other)


async def test_a_node_that_is_opened_on_a_drained_one_is_born_quiet() -> None:
    with disks():
        base = await store()
        async with drained(base):
            middle = await over(base)
            assert middle.quiesce_counter == 1
        await close(middle, base)


# -- a drain that would wait for itself


async def test_inside_a_request_of_its_own_a_drain_is_refused() -> None:
    with disks():
        base = await store()
        middle, user = await over(base), User()
        edge = use(user, middle)
        for owner in (base, middle, user):
            with RequestScope(owner), pytest.raises(RuntimeError, match="would never end"):
                await drained_begin(base)
        with RequestScope(base):  # the drain of what is above does not wait for what is below
            async with drained(middle):
                pass
        assert current_requests.get() is None
        await detach_child(edge)
        await close(middle, base)


async def test_a_task_that_outlives_its_request_may_drain() -> None:
    with disks():
        base = await store()

        async def later() -> None:
            await asyncio.sleep(0)
            async with drained(base):
                pass

        with RequestScope(base):
            task = asyncio.ensure_future(later())
        await task
        await close(base)


async def test_the_last_reference_is_not_given_back_inside_a_request() -> None:
    with disks():
        base = await store()
        with RequestScope(base), pytest.raises(RuntimeError, match="would never end"):
            await base.unref()
        assert base.refcnt == 1
        await close(base)


# -- all of them


async def test_drain_all() -> None:
    with disks():
        base, other, user = await store(), await store("other"), User()
        edge = use(user, base)
        async with drained_all():
            assert (base.quiesce_counter, other.quiesce_counter, user.quiesced) == (1, 1, 1)
            late = await over(other)
            assert late.quiesce_counter == 2
            async with drained_all():
                assert base.quiesce_counter == 2
        assert (base.quiesce_counter, late.quiesce_counter, user.quiesced) == (0, 0, 0)
        await detach_child(edge)
        await close(late, base, other)


async def test_a_cancelled_drain_all_is_no_section() -> None:
    with disks():
        base, other, user = await store(), await store("other"), User()
        edge = use(user, other)
        user.busy = True
        for after in range(6):
            task = asyncio.ensure_future(drain_all_begin())
            await turns(after)
            task.cancel()
            await asyncio.wait([task])
            assert (base.quiesce_counter, other.quiesce_counter, user.quiesced) == (0, 0, 0)
        user.busy = False
        async with drained_all():
            pass
        await detach_child(edge)
        await close(base, other)


async def test_a_node_made_while_a_drain_all_fails_is_not_left_quiet() -> None:
    with disks():
        base, user = await store(), User()
        edge = use(user, base)
        user.busy = True
        task = asyncio.ensure_future(drain_all_begin())
        await turns()
        late = await store("other")
        assert late.quiesce_counter == 1
        task.cancel()
        await asyncio.wait([task])
        assert (base.quiesce_counter, late.quiesce_counter, user.quiesced) == (0, 0, 0)
        user.busy = False
        await detach_child(edge)
        await close(base, late)


async def test_closing_in_a_drained_section() -> None:
    with world(img=image()):
        node = await open_node("toy-store:img", path_factory=Path)
        await drained_begin(node)
        await node.unref()
        drained_end(node)
