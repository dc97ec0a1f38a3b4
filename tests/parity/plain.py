"""Transformers' processor and Trainer for the parity tests, the distance of two results, and callbacks that record our
losses."""

from typing import Any

from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import Qwen2VLProcessor, Trainer

MIN_SHARE = 0.05


def measure_distance(actual: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> float:
    """The largest difference of losses, and of gradients relative to the largest entry of their tensor.

    At least relative to MIN_SHARE of the largest entry of all: the gradient of a decay gate (Qwen3.5's in_proj_a) is a
    small difference of large sums, and plain transformers' own, of one row and of a batch, differ by 1e-4 of it.
    """
    assert actual[1].keys() == expected[1].keys()
    largest = max(grad.abs().max().item() for grad in expected[1].values())
    gradients = [
        (actual[1][name] - grad).abs().max().item() / max(grad.abs().max().item(), MIN_SHARE * largest)
        for name, grad in expected[1].items()
    ]
    return max((actual[0] - expected[0]).abs().max().item(), *gradients)


class ImageOnlyProcessor(Qwen2VLProcessor):
    """Qwen2-VL's processor without a video processor, which needs torchvision."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **options: Any
    ) -> None:
        super().__init__(image_processor=image_processor, tokenizer=tokenizer, chat_template=chat_template, **options)


class OrderedTrainer(Trainer):
    """The Trainer's loop over the examples in their given order, with the mean over the labels of a step.

    For models after Qwen2-VL it would take the mean of the micro-batches' means.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.model_accepts_loss_kwargs = True

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset or self.train_dataset)


class LossRecorder:
    """Callbacks of our training loop that record the loss of every step and may stop it early."""

    def __init__(self, num_steps: int | None = None) -> None:
        self.num_steps, self.losses = num_steps, list[float]()

    def on_step_end(self, step: int, loss: float) -> None:
        self.losses.append(loss)

    def on_log(self, report: Any) -> None: ...
    def on_evaluate(self, step: int, loss: float) -> float:
        return loss

    def on_new_best(self, step: int) -> None: ...
    def on_save(self, step: int, state: Any) -> None: ...
    def on_out_of_memory(self, step: int, max_tokens: int, rank: int) -> None: ...

    def should_stop(self) -> bool:
        return len(self.losses) == self.num_steps
