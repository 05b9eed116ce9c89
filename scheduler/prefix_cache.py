"""Which blocks hold which token prefixes, so that requests with a common beginning compute it once.

A full block is known by a hash over its tokens and the hash of the block before it: equal hashes mean equal prefixes,
not only equal blocks. The chain starts from whose request it is and from its cache salt: how soon an answer begins
tells whether its prompt was there, and so whoever shares blocks with others can find out, guess by guess, what they
have sent.
"""

from array import array
from collections.abc import Iterable
from hashlib import blake2b

from .request import BlockId, Request

_DIGEST_SIZE = 16  # 128 bits: a collision, which would mix two users' prompts, stays out of reach


def chain_start(request: Request, *, is_shared: bool = False) -> bytes:
    """What a request's first block has for the hash of the block before it; `is_shared`: whoever's request it is."""
    # The principal is a key of fixed length, so that no other pair of principal and salt has the same bytes.
    principal = "" if is_shared else request.principal
    owner = blake2b(principal.encode(), digest_size=_DIGEST_SIZE).digest()
    return blake2b(request.cache_salt.encode(), digest_size=_DIGEST_SIZE, key=owner).digest()


def extend_block_hashes(request: Request, block_size: int, num_blocks: int, *, is_shared: bool = False) -> None:
    """Make `request.block_hashes` cover its first `num_blocks` blocks, all of which are full; see `chain_start`."""
    hashes = request.block_hashes
    for index in range(len(hashes), num_blocks):
        parent = hashes[-1] if hashes else chain_start(request, is_shared=is_shared)
        tokens = array("q", request.token_ids[index * block_size : (index + 1) * block_size])
        hashes.append(blake2b(tokens.tobytes(), digest_size=_DIGEST_SIZE, key=parent).digest())


class PrefixCache:
    """Hash to block and back, for the blocks of one model whose content is complete."""

    def __init__(self) -> None:
        self._block_by_hash: dict[bytes, BlockId] = {}
        self._hash_by_block: dict[BlockId, bytes] = {}
        self.num_queried_tokens = 0
        self.num_hit_tokens = 0

    def __len__(self) -> int:
        return len(self._block_by_hash)

    def __contains__(self, block_id: BlockId) -> bool:
        return block_id in self._hash_by_block

    def longest_prefix(self, block_hashes: Iterable[bytes]) -> list[BlockId]:
        """The blocks of the longest known run from the start of `block_hashes`."""
        found = []
        for block_hash in block_hashes:
            block_id = self._block_by_hash.get(block_hash)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def remember(self, block_id: BlockId, block_hash: bytes) -> None:
        """Note a block's content. The first block with that content stays: block tables are append-only."""
        if block_hash not in self._block_by_hash and block_id not in self._hash_by_block:
            self._block_by_hash[block_hash] = block_id
            self._hash_by_block[block_id] = block_hash

    def forget(self, block_id: BlockId) -> None:
        """The block's content is about to be overwritten."""
        block_hash = self._hash_by_block.pop(block_id, None)
        if block_hash is not None:
            del self._block_by_hash[block_hash]

    def forget_contents(self, block_hashes: Iterable[bytes]) -> None:
        """No block holds these any more, or so it must be assumed."""
        for block_hash in block_hashes:
            block_id = self._block_by_hash.pop(block_hash, None)
            if block_id is not None:
                del self._hash_by_block[block_id]

    def clear(self) -> None:
        """Forget every block."""
        self._block_by_hash.clear()
        self._hash_by_block.clear()
