"""Says what load every model has, for metrics and for those who route requests."""

from .lanes import EmbeddingLane, GenerationLane
from .messages import ModelStats
from .scheduler import Scheduler


def stats_of(scheduler: Scheduler) -> dict[str, ModelStats]:
    """The load of every model."""
    generation = {lane.model: _of_generation(scheduler, lane) for lane in scheduler.generation_lanes.values()}
    embedding = {lane.model: _of_embedding(scheduler, lane) for lane in scheduler.embedding_lanes.values()}
    return generation | embedding


def _of_generation(scheduler: Scheduler, lane: GenerationLane) -> ModelStats:
    return ModelStats(
        num_running=len(lane.running),
        num_waiting=scheduler.num_waiting(lane.model),
        kv_blocks_total=lane.kv.pool.num_blocks,
        kv_blocks_used=lane.kv.pool.num_used,
        prefix_cache_queries=lane.kv.prefix_cache.num_queried_tokens,
        prefix_cache_hits=lane.kv.prefix_cache.num_hit_tokens,
        num_preemptions=lane.num_preemptions,
        prompt_tokens=lane.num_prompt_tokens,
        generation_tokens=lane.num_generation_tokens,
        draft_tokens=lane.num_draft_tokens,
        accepted_draft_tokens=lane.num_accepted_tokens,
        num_waiting_tokens=scheduler.admission.num_waiting_tokens(lane.model),
        refusals=scheduler.admission.refusals(lane.model),
    )


def _of_embedding(scheduler: Scheduler, lane: EmbeddingLane) -> ModelStats:
    return ModelStats(
        num_running=0,
        num_waiting=len(lane.unfinished),
        kv_blocks_total=0,
        kv_blocks_used=0,
        prefix_cache_queries=0,
        prefix_cache_hits=0,
        num_preemptions=0,
        prompt_tokens=lane.num_prompt_tokens,
        generation_tokens=0,
        num_waiting_tokens=scheduler.admission.num_waiting_tokens(lane.model),
        refusals=scheduler.admission.refusals(lane.model),
    )
