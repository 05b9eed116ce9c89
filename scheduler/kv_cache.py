"""One model's KV blocks as the scheduler sees them: what a request can reuse, what it takes, what it gives back."""

from collections.abc import Sequence

from .block_pool import BlockPool
from .kv_arena import KVArena
from .prefix_cache import PrefixCache, extend_block_hashes
from .request import BlockId, Request


class KVCacheManager:
    """Block tables of one model's requests over a `BlockPool` and a `PrefixCache`; never touches a tensor."""

    def __init__(
        self,
        arena: KVArena,
        block_bytes: int,
        block_size: int,
        *,
        enable_prefix_caching: bool = True,
        shared_prefix_cache: bool = False,
    ) -> None:
        """A block of this model takes `block_bytes` of the arena and holds `block_size` tokens."""
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.shared_prefix_cache = shared_prefix_cache
        self.prefix_cache = PrefixCache()
        self.pool = BlockPool(arena, block_bytes, self.prefix_cache.forget)

    @property
    def capacity(self) -> int:
        """Tokens that fit when one request holds every block, and so the whole arena."""
        return self.pool.num_blocks * self.block_size

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold that many tokens."""
        return -(-num_tokens // self.block_size)

    def find_cached(self, request: Request) -> list[BlockId]:
        """Blocks that already hold the beginning of the request's tokens.

        At least one token stays to be computed, since the next one is sampled from its logits; and every token of a
        request that wants all of them.
        """
        if not self.enable_prefix_caching or request.needs_prompt_logprobs:
            return []
        num_full_blocks = (request.num_tokens - 1) // self.block_size
        extend_block_hashes(request, self.block_size, num_full_blocks, is_shared=self.shared_prefix_cache)
        return self.prefix_cache.longest_prefix(request.block_hashes[:num_full_blocks])

    def can_admit(self, request: Request, cached: Sequence[BlockId]) -> bool:
        """Whether all tokens of a waiting request fit, given the cached blocks that it would share."""
        num_new = self.num_blocks_for(request.num_tokens) - len(cached)
        num_cached_free = sum(map(self.pool.is_free, cached))
        return self.pool.can_take(num_new + num_cached_free)

    def admit(self, request: Request, cached: Sequence[BlockId]) -> None:
        """Give a waiting request its cached blocks and new ones for the rest of its tokens; `can_admit` was true.

        All known tokens get their blocks at once, though they may be computed in several steps: a request that began
        its prompt can then always finish it, and half-computed prompts never compete for the last blocks.
        """
        assert not request.block_ids and request.num_computed_tokens == 0
        self.pool.share(cached)
        request.block_ids = list(cached)
        request.num_shared_blocks = len(cached)
        request.num_computed_tokens = len(cached) * self.block_size
        self._take(request, self.num_blocks_for(request.num_tokens) - len(cached))
        if request.num_preemptions == 0:
            request.num_cached_tokens = request.num_computed_tokens
            self.prefix_cache.num_queried_tokens += request.num_tokens
            self.prefix_cache.num_hit_tokens += request.num_cached_tokens

    def can_grow(self, request: Request, num_drafts: int = 0) -> bool:
        """Whether a running request's newest token, and guesses after it, have blocks, or they are free for them."""
        num_missing = self._num_missing(request, num_drafts)
        return num_missing == 0 or self.pool.can_take(num_missing)

    def grow(self, request: Request, num_drafts: int = 0) -> None:
        """Give a running request the blocks its newest tokens, and guesses after them, need; `can_grow` was true.

        What wrong guesses took is kept for the tokens that come instead.
        """
        if num_missing := self._num_missing(request, num_drafts):
            self._take(request, num_missing)

    def remember(self, request: Request, num_tokens: int) -> None:
        """Let others share the request's full blocks among its first `num_tokens` tokens.

        Called when those tokens are scheduled, not when they are computed: within a step all keys and values of a
        layer are written before any are read, so even a request of the same step may use them. A block whose last
        token the host does not know yet has its turn at a later call.
        """
        if not self.enable_prefix_caching:
            return
        num_full_blocks = min(num_tokens, len(request.token_ids)) // self.block_size
        if num_full_blocks <= request.num_shared_blocks:
            return
        extend_block_hashes(request, self.block_size, num_full_blocks, is_shared=self.shared_prefix_cache)
        for index in range(request.num_shared_blocks, num_full_blocks):
            self.prefix_cache.remember(request.block_ids[index], request.block_hashes[index])
        request.num_shared_blocks = num_full_blocks

    def forget_from(self, request: Request, num_tokens: int) -> None:
        """What was computed of the request from token `num_tokens` on is in doubt: nobody shall find it.

        Its blocks may be others' meanwhile, so those that must not be found are known by what they should have held.
        """
        first = num_tokens // self.block_size
        self.prefix_cache.forget_contents(request.block_hashes[first:])
        request.num_shared_blocks = min(request.num_shared_blocks, first)
        request.num_computed_tokens = min(request.num_computed_tokens, num_tokens)

    def release(self, request: Request) -> None:
        """Take all blocks back. The last ones become free first: the longer a prefix, the less likely its reuse."""
        self.remember(request, request.num_computed_tokens)
        for block_id in reversed(request.block_ids):
            self.pool.release(block_id, reusable=block_id in self.prefix_cache)
        request.block_ids = []
        request.num_computed_tokens = request.num_shared_blocks = 0

    def slabs_of(self, request: Request) -> set[int]:
        """The arena's slabs that the request keeps from other models."""
        return {slab for block_id in request.block_ids for slab in self.pool.slabs_of(block_id)}

    def close(self) -> None:
        """Give all memory back because the model is unloaded; no request holds any."""
        self.pool.close()
        self.prefix_cache.clear()

    def move_to(self, arena: KVArena) -> None:
        """Go on in another arena, with nothing in it; no request holds any block."""
        self.close()
        self.pool = BlockPool(arena, self.pool.block_bytes, self.prefix_cache.forget)

    def _num_missing(self, request: Request, num_drafts: int) -> int:
        num_beyond = request.num_tokens + num_drafts - len(request.block_ids) * self.block_size
        return -(-num_beyond // self.block_size) if num_beyond > 0 else 0

    def _take(self, request: Request, num_blocks: int) -> None:
        request.block_ids += self.pool.take(num_blocks)
