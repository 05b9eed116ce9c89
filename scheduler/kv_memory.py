"""The device memory in which all generation models keep their keys and values: allocated, shared, made smaller.

It is allocated with the first model and freed with the last. If its size is automatic it takes what is free, and gives
some of that back when the weights of another model need it.
"""

import logging
from collections.abc import Collection

import torch

from . import device
from .config import EngineConfig
from .errors import ModelLoadError
from .kv_arena import KVArena
from .kv_cache import KVCacheManager
from .runner import GenerationRunner
from .scheduler import Scheduler

logger = logging.getLogger(__name__)

_LEAST_SHARE = 0.25  # of what there was first stays, however many models come


class KVMemory:
    """One tensor of bytes, and the arena that says which model holds which part.

    Args:
        config: resolved.
        scheduler: of the requests whose keys and values it holds.
    """

    def __init__(self, config: EngineConfig, scheduler: Scheduler) -> None:
        self._config = config
        self._scheduler = scheduler
        self._storage: torch.Tensor | None = None  # [bytes] uint8; None while no generation model is resident
        self._arena: KVArena | None = None
        self._least_bytes = 0

    def share(self, runner: GenerationRunner, keep_free: int) -> KVCacheManager:
        """Let a model keep its keys and values here.

        Args:
            runner: the model.
            keep_free: bytes of memory that the first model leaves for the weights of others.

        Raises:
            ModelLoadError: the memory does not hold one block of it.
        """
        size, config = runner.kv_bytes_per_block, self._config
        if self._arena is not None:
            num_bytes = self._arena.num_bytes
        else:
            num_bytes = config.kv_cache_memory or device.memory_for_kv_cache(config, keep_free)
        if num_bytes < size:
            raise ModelLoadError(
                f"one KV block of {runner.name} takes {size} bytes, but the KV cache memory is {num_bytes}; "
                "raise kv_cache_memory"
            )
        if self._arena is None:
            self._least_bytes = num_bytes if config.kv_cache_memory else int(_LEAST_SHARE * num_bytes)
            self._allocate(runner, num_bytes)
        assert self._storage is not None and self._arena is not None
        runner.use_kv_memory(self._storage)
        return KVCacheManager(
            self._arena,
            size,
            config.block_size,
            enable_prefix_caching=config.enable_prefix_caching,
            shared_prefix_cache=config.shared_prefix_cache,
        )

    def shrink(self, num_bytes: int, runners: Collection[GenerationRunner]) -> bool:
        """Give `num_bytes` to the weights of another model, which may be done between two steps.

        What was computed is lost: running requests are queued and computed again. A size that was configured stays, and
        so does room for the longest request of every model, and a share of what there was first.

        Args:
            num_bytes: how much.
            runners: all generation models.

        Returns:
            Whether so much could be given; if not, all is as it was.
        """
        if self._arena is None:
            return False
        lanes = self._scheduler.generation_lanes.values()
        longest = max(
            lane.kv.num_blocks_for(min(lane.max_model_len, lane.kv.capacity)) * lane.kv.pool.block_bytes
            for lane in lanes
        )
        smaller = self._arena.num_bytes - num_bytes
        if smaller < max(self._least_bytes, longest):
            return False
        logger.info("the KV memory shrinks to %.2f GiB, to make room for another model", smaller / 2**30)
        self._scheduler.preempt_all()
        for runner in runners:
            runner.leave_kv_memory()
        self.free()  # before its successor is allocated: both would not fit
        device.return_memory(self._config.device)
        self._allocate(next(iter(runners)), smaller)
        assert self._storage is not None and self._arena is not None
        for runner in runners:
            runner.use_kv_memory(self._storage)
        for lane in lanes:
            lane.kv.move_to(self._arena)
        return True

    def free(self) -> None:
        """Give all of it back; no model uses it any more."""
        self._storage = self._arena = None

    def _allocate(self, runner: GenerationRunner, num_bytes: int) -> None:
        # Written in full on purpose: memory that the kernel zeroes at its first use made steps 250 ms longer.
        self._storage = torch.zeros(num_bytes, dtype=torch.uint8, device=runner.device)
        self._arena = KVArena.for_blocks(num_bytes, runner.kv_bytes_per_block)
