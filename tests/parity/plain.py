"""What the parity tests hold ours against: transformers' own processor and Trainer, and a watcher that keeps losses."""

from typing import Any

from torch.utils.data import SequentialSampler
from transformers import Qwen2VLProcessor, Trainer


class ImageOnly(Qwen2VLProcessor):
    """transformers builds a video processor, which wants torchvision, unless the signature lacks one."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **rest: Any
    ) -> None:
        super().__init__(image_processor=image_processor, tokenizer=tokenizer, chat_template=chat_template, **rest)


class InOrder(Trainer):
    """The Trainer's own loop over examples in the order given."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset or self.train_dataset)


class Losses:
    """A watcher of our loop that keeps the losses."""

    def __init__(self) -> None:
        self.kept: list[float] = []

    def stepped(self, step: int, loss: float) -> None:
        self.kept.append(loss)

    def logged(self, report: Any) -> None: ...
    def evaluated(self, step: int, loss: float) -> None: ...
    def best(self, step: int) -> None: ...
    def checkpoint(self, step: int, state: Any) -> None: ...
    def smaller(self, step: int, tokens: int) -> None: ...

    def stop(self) -> bool:
        return False
