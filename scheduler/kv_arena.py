"""Which model holds which part of the KV memory that all models of a device share.

The memory, the arena, is dealt out in slabs of equal size. A model takes a slab when it needs a block and has none to
spare, and loses it only when no request holds any block in it: to a model that needs it more, the slab that has been
idle longest first, or when it is unloaded. A slab knows nothing of blocks: every model lays blocks of its own size over
the arena and may use those that lie wholly in its slabs.

What can be obtained at any moment is the free slabs and the idle ones of other models. So a request that may preempt
all others can have every byte of the arena: the proof that nothing ever waits for ever, see `Scheduler`.
"""

from collections.abc import Iterator
from typing import Protocol

_NUM_SLABS = 32  # a model that holds a single block keeps 3% of the memory from the others
_MIN_BLOCKS_PER_SLAB = 4  # of the first model: where slabs of two models meet, a block of each is lost


class SlabHolder(Protocol):
    """What the arena asks of a model's block pool."""

    def lose(self, slab: int) -> None:
        """An idle slab goes to another model: forget its blocks and what they hold."""


class KVArena:
    """The slabs of `num_bytes` of KV memory, their holders, and how many blocks in use touch each."""

    def __init__(self, num_bytes: int, slab_bytes: int) -> None:
        """The last slab may be shorter than `slab_bytes`."""
        self.num_bytes = num_bytes
        self.slab_bytes = slab_bytes
        self.num_slabs = -(-num_bytes // slab_bytes)
        self._holders: list[SlabHolder | None] = [None] * self.num_slabs
        self._num_used = [0] * self.num_slabs
        self._idle_since: dict[int, int] = {}
        """Held slabs without a block in use, the longest idle first."""
        self._clock = 0

    @classmethod
    def for_blocks(cls, num_bytes: int, block_bytes: int) -> "KVArena":
        """An arena with slabs of a size that suits blocks of `block_bytes`, and other models' of the same order."""
        return cls(num_bytes, max(-(-num_bytes // _NUM_SLABS), _MIN_BLOCKS_PER_SLAB * block_bytes, 1))

    def now(self) -> int:
        """A number that grows: the order in which content was last used, over all models."""
        self._clock += 1
        return self._clock

    def slabs_of(self, start: int, end: int) -> range:
        """The slabs that the bytes [start, end) touch."""
        return range(start // self.slab_bytes, (end - 1) // self.slab_bytes + 1)

    def bounds(self, slab: int) -> tuple[int, int]:
        """First byte of a slab, and the one after its last."""
        return slab * self.slab_bytes, min((slab + 1) * self.slab_bytes, self.num_bytes)

    def is_held(self, slab: int, holder: SlabHolder) -> bool:
        """Whether `holder` may use the slab."""
        return self._holders[slab] is holder

    def use(self, start: int, end: int) -> None:
        """A block at these bytes comes into use."""
        for slab in self.slabs_of(start, end):
            self._num_used[slab] += 1
            self._idle_since.pop(slab, None)

    def release(self, start: int, end: int) -> None:
        """A block at these bytes is in use no more."""
        for slab in self.slabs_of(start, end):
            self._num_used[slab] -= 1
            if self._num_used[slab] == 0:
                self._idle_since[slab] = self.now()

    def obtain(self, holder: SlabHolder, *, idle_before: int | None = None) -> int | None:
        """Give `holder` another slab: a free one, else another model's that has been idle longest.

        Args:
            holder: who wants it.
            idle_before: take another model's slab only if it has been idle since before that time.

        Returns:
            The slab; None: there is none.
        """
        slab = next((slab for slab, other in enumerate(self._holders) if other is None), None)
        if slab is None:
            slab = next((slab for slab in self._idle_since if self._holders[slab] is not holder), None)
            if slab is None or (idle_before is not None and self._idle_since[slab] >= idle_before):
                return None
            other = self._holders[slab]
            assert other is not None
            other.lose(slab)
        self._holders[slab] = holder
        self._idle_since[slab] = self.now()
        return slab

    def give_up(self, holder: SlabHolder) -> None:
        """Take all slabs of a model that goes; none of its blocks is in use."""
        for slab, other in enumerate(self._holders):
            if other is holder:
                assert self._num_used[slab] == 0, f"slab {slab} is given up with {self._num_used[slab]} blocks in use"
                self._holders[slab] = None
                self._idle_since.pop(slab, None)

    def obtainable_runs(self, holder: SlabHolder) -> Iterator[tuple[int, int]]:
        """Byte ranges [start, end) that `holder` has or can have without anybody's giving way, as long as possible."""
        start = None
        for slab, other in enumerate(self._holders):
            if other is holder or other is None or slab in self._idle_since:
                start = self.bounds(slab)[0] if start is None else start
            elif start is not None:
                yield start, self.bounds(slab)[0]
                start = None
        if start is not None:
            yield start, self.num_bytes
