"""What several GPUs gain in a training, in words for its first lines. Needs no torch."""

from lorgnette.config import Settings
from lorgnette.engine.select import select_engine, select_prefix_sharing
from lorgnette.models.registry import has_known_sizes
from lorgnette.planning.data_parallel import estimate_parallel
from lorgnette.planning.gpus import find_gpu
from lorgnette.planning.memory import Workload
from lorgnette.planning.throughput import estimate_time
from lorgnette.training.batch_stats import count_steps
from lorgnette.training.data_module import TrainingData
from lorgnette.training.sampler import BatchSampler


def describe_gain(settings: Settings, data: TrainingData, num_gpus: int) -> list[str]:
    """How much faster than on one such GPU, and if that is little, what would use them; empty if nobody knows.

    The GPU is the first that this machine shows; `plan` says the same.
    """
    config = data.checkpoint.load_hf_config()
    gpu = find_gpu() if num_gpus > 1 and settings.device in ("auto", "cuda") else None
    if gpu is None or gpu.tflops is None or not has_known_sizes(config):
        return []
    engine, _ = select_engine(settings, config, on_gpu=True)
    sampler = BatchSampler(data.examples, settings.train, settings.seed, group_by_image=settings.data.group_by_image)
    max_tokens, prefix_sharing = settings.train.max_tokens_per_microbatch, select_prefix_sharing(settings, engine)
    steps = count_steps(sampler, max_tokens, prefix_sharing=prefix_sharing)
    workload = Workload.from_settings(settings, config, engine, steps.largest_microbatch, data.held_out, data.grids)
    time = estimate_time(workload, gpu.tflops, steps.tokens, steps.labels, steps.num_microbatches, ())
    parallel = estimate_parallel(workload, gpu, steps.tokens_per_step, num_gpus)
    return parallel.describe(time.steps_s, settings.train.batch_size)
