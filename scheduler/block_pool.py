"""Which KV blocks are in use, by how many requests, and in which order the free ones are taken again."""

from collections import OrderedDict
from collections.abc import Iterable

from .request import BlockId


class BlockPool:
    """Reference counts and the free queue of the `num_blocks` blocks of one model's KV cache.

    A block is free when no request holds it. Free blocks keep their content until they are taken, so the prefix cache
    may still point at them; the queue is ordered by how soon they should be taken: first the blocks without reusable
    content, then the least recently used.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.ref_counts = [0] * num_blocks
        self._free: OrderedDict[BlockId, None] = OrderedDict.fromkeys(map(BlockId, range(num_blocks)))

    @property
    def num_free(self) -> int:
        """Blocks that no request holds."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks that at least one request holds."""
        return self.num_blocks - len(self._free)

    def free_order(self) -> list[BlockId]:
        """The free blocks, the next to be taken first."""
        return list(self._free)

    def is_free(self, block_id: BlockId) -> bool:
        """Whether no request holds the block."""
        return self.ref_counts[block_id] == 0

    def take(self, num_blocks: int) -> list[BlockId]:
        """Take that many free blocks, each with a reference count of 1; their old content is lost.

        The caller has checked `num_free`.
        """
        taken = [self._free.popitem(last=False)[0] for _ in range(num_blocks)]
        for block_id in taken:
            self.ref_counts[block_id] = 1
        return taken

    def share(self, block_ids: Iterable[BlockId]) -> None:
        """Add one reference to blocks whose content is wanted as it is, whether they are free or in use."""
        for block_id in block_ids:
            if self.ref_counts[block_id] == 0:
                del self._free[block_id]
            self.ref_counts[block_id] += 1

    def release(self, block_id: BlockId, *, reusable: bool) -> None:
        """Drop one reference; a block nobody holds becomes free, the last to be taken if its content is reusable."""
        assert self.ref_counts[block_id] > 0, f"block {block_id} is released more often than it was taken"
        self.ref_counts[block_id] -= 1
        if self.ref_counts[block_id] == 0:
            self._free[block_id] = None
            if not reusable:
                self._free.move_to_end(block_id, last=False)
