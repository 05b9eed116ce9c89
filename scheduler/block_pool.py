"""Which KV blocks of one model are in use, by how many requests, and which free one is taken next."""

from collections import OrderedDict
from collections.abc import Callable, Iterable

from .kv_arena import KVArena
from .request import BlockId


class BlockPool:
    """Reference counts and the free queue of one model's blocks in the arena's slabs.

    A block is free when no request holds it. Free blocks keep their content until they are taken, so the prefix cache
    may still point at them; the queue is ordered by how soon they should be taken: first the blocks without reusable
    content, then the least recently used. Before content is lost the pool takes free slabs, and of two models the one
    whose content was used longer ago loses it.
    """

    def __init__(
        self, arena: KVArena, block_bytes: int, forget: Callable[[BlockId], object] = lambda block_id: None
    ) -> None:
        """`forget` is told of every block whose content is lost."""
        self.num_blocks = arena.num_bytes // block_bytes
        """Those that there are if the model holds the whole arena."""
        self.ref_counts = [0] * self.num_blocks
        self.num_used = 0
        """Blocks that at least one request holds."""
        self._arena = arena
        self.block_bytes = block_bytes
        self._forget = forget
        self._free: OrderedDict[BlockId, None] = OrderedDict()
        self._last_use: dict[BlockId, int] = {}
        """When the reusable ones among the free blocks were last used."""

    @property
    def num_available(self) -> int:
        """Blocks that can be taken, in the slabs that the pool holds and in those that it can obtain."""
        size = self.block_bytes
        runs = self._arena.obtainable_runs(self)
        return sum(max(0, end // size - -(-start // size)) for start, end in runs) - self.num_used

    def can_take(self, num_blocks: int) -> bool:
        """Whether `take` may be called for so many."""
        return num_blocks <= len(self._free) or num_blocks <= self.num_available

    def free_order(self) -> list[BlockId]:
        """The free blocks in the slabs that the pool holds, the next to be taken first."""
        return list(self._free)

    def is_free(self, block_id: BlockId) -> bool:
        """Whether no request holds the block."""
        return self.ref_counts[block_id] == 0

    def take(self, num_blocks: int) -> list[BlockId]:
        """Take that many blocks, each with a reference count of 1; their old content is lost.

        The caller has asked `can_take`.
        """
        return [self._take_one() for _ in range(num_blocks)]

    def share(self, block_ids: Iterable[BlockId]) -> None:
        """Add one reference to blocks whose content is wanted as it is, whether they are free or in use."""
        for block_id in block_ids:
            if self.ref_counts[block_id] == 0:
                del self._free[block_id]
                self._last_use.pop(block_id, None)
                self._start_use(block_id)
            self.ref_counts[block_id] += 1

    def release(self, block_id: BlockId, *, reusable: bool) -> None:
        """Drop one reference; a block nobody holds becomes free, the last to be taken if its content is reusable."""
        assert self.ref_counts[block_id] > 0, f"block {block_id} is released more often than it was taken"
        self.ref_counts[block_id] -= 1
        if self.ref_counts[block_id] > 0:
            return
        self.num_used -= 1
        self._arena.release(*self._bytes_of(block_id))
        self._free[block_id] = None
        if reusable:
            self._last_use[block_id] = self._arena.now()
        else:
            self._free.move_to_end(block_id, last=False)

    def slabs_of(self, block_id: BlockId) -> range:
        """The slabs that the block touches."""
        return self._arena.slabs_of(*self._bytes_of(block_id))

    def lose(self, slab: int) -> None:
        """See `SlabHolder`."""
        for block_id in self._touching(slab):
            if block_id in self._free:
                self._drop(block_id)

    def close(self) -> None:
        """Give every slab back because the model is unloaded; none of its blocks is in use."""
        self._arena.give_up(self)
        self._free.clear()
        self._last_use.clear()

    def _take_one(self) -> BlockId:
        first = next(iter(self._free), None)
        # Before content is lost, whether the pool's own or another's, memory is taken that holds none.
        while first is None or first in self._last_use:
            slab = self._arena.obtain(self, idle_before=None if first is None else self._last_use[first])
            if slab is None:
                break
            self._gain(slab)
            first = next(iter(self._free), None)
        assert first is not None, "more blocks are taken than are available"
        self._drop(first)
        self._start_use(first)
        self.ref_counts[first] = 1
        return first

    def _gain(self, slab: int) -> None:
        """Add the blocks that lie wholly in the pool's slabs now, the first of them to be taken next."""
        for block_id in reversed(self._touching(slab)):
            if all(self._arena.is_held(touched, self) for touched in self.slabs_of(block_id)):
                self._free[block_id] = None
                self._free.move_to_end(block_id, last=False)

    def _drop(self, block_id: BlockId) -> None:
        del self._free[block_id]
        self._last_use.pop(block_id, None)
        self._forget(block_id)

    def _start_use(self, block_id: BlockId) -> None:
        self.num_used += 1
        self._arena.use(*self._bytes_of(block_id))

    def _touching(self, slab: int) -> list[BlockId]:
        """The blocks that lie in the slab, if only in part."""
        start, end = self._arena.bounds(slab)
        first, last = start // self.block_bytes, min((end - 1) // self.block_bytes, self.num_blocks - 1)
        return [BlockId(index) for index in range(first, last + 1)]

    def _bytes_of(self, block_id: BlockId) -> tuple[int, int]:
        return block_id * self.block_bytes, (block_id + 1) * self.block_bytes
