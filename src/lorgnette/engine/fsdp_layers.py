"""transformers' decoder layers, cut over the ranks by FSDP2: for a model that is larger than a GPU.

torch's `fully_shard` keeps a part of each frozen weight on every rank. It gathers a layer's weights before its forward
and again before its backward. The adapter's parameters are whole on every rank: the trainer sums their gradients.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lorgnette.config import Settings
from lorgnette.distributed import World
from lorgnette.engine.packed_attention import build_segments
from lorgnette.engine.peft_engine import add_adapter, load_adapter, load_base_model
from lorgnette.models.base_checkpoint import BaseCheckpoint

if TYPE_CHECKING:
    from peft import PeftModel
    from torch.distributed.device_mesh import DeviceMesh


def open_mesh(device: torch.device, world: World) -> "DeviceMesh":
    """All ranks, for FSDP2. Every rank calls this."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device.type, (world.size,))


def load_sharded_model(
    checkpoint: BaseCheckpoint,
    settings: Settings,
    resume_from: Path | None,
    device: torch.device,
    dtype: torch.dtype,
    world: World,
) -> tuple["PeftModel", "FsdpLayers"]:
    """The model with its adapter, and with layers cut over the ranks. resume_from: a checkpoint with the adapter.

    The ranks of a machine take turns: each holds the whole model in host memory until its layers are cut.
    """
    mesh = open_mesh(device, world)
    for local_rank in range(max(world.gather_objects(world.local_size))):
        if local_rank == world.local_rank:
            base = load_base_model(checkpoint, torch.device("cpu"), dtype)
            if resume_from is None:
                model = add_adapter(base, checkpoint.family, settings.lora, settings.seed)
            else:
                model = load_adapter(base, resume_from, is_trainable=True)
            shards = FsdpLayers(model, device, world, mesh)
        world.barrier()
    return model, shards


class FsdpLayers:
    """Implements `Shards` for a model of transformers with PEFT's adapter."""

    is_collective = True

    def __init__(self, model: "PeftModel", device: torch.device, world: World, mesh: "DeviceMesh") -> None:
        """Cut the layers, one at a time, and move the rest to the device. Waits for no rank.

        model: on the CPU, where it is larger than the device's memory.
        """
        from torch.distributed.fsdp import fully_shard

        self.world, self.is_leading = world, False
        self._decoder = model.get_base_model().get_submodule("model.language_model")
        self._embedding = model.get_base_model().get_input_embeddings()
        layers: Sequence[nn.Module] = self._decoder.get_submodule("layers")
        trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
        cut: set[nn.Parameter] = set()
        for layer in layers:
            layer.to(device)
            fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
            cut.update(layer.parameters())
        model.to(device)
        # The layers' common parent: it gathers one layer ahead, and keeps its own few weights whole.
        fully_shard(self._decoder, mesh=mesh, ignored_params={*self._decoder.parameters()} - (cut - trained))
        self._decoder.register_forward_pre_hook(self._announce_pass)

    def run_empty_pass(self, *, backward: bool) -> None:
        """As Shards.run_empty_pass: one token, whose gradient is zero."""
        width, device = self._embedding.embedding_dim, self._embedding.weight.device
        embeddings = torch.zeros(1, 1, width, dtype=self._embedding.weight.dtype, device=device)
        positions = torch.zeros(3, 1, 1, dtype=torch.long, device=device)
        half = embeddings.dtype != torch.float32
        with torch.set_grad_enabled(backward), torch.autocast(device.type, dtype=embeddings.dtype, enabled=half):
            hidden = self._decoder(
                inputs_embeds=embeddings, position_ids=positions, attention_mask=None, use_cache=False,
                segments=build_segments([0, 1], device),
            ).last_hidden_state  # fmt: skip
        if backward:
            (hidden * 0).sum().backward()

    def follow(self) -> None:
        """As Shards.follow."""
        while self.world.broadcast_object(None):
            self.run_empty_pass(backward=False)

    def _announce_pass(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if self.is_leading:
            self.world.broadcast_object(True)
