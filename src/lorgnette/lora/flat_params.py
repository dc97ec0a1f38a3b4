"""All LoRA factors in one flat fp32 vector, with one flat gradient, so that one optimizer kernel updates them.

    values  | layer 0: A_q A_k A_v B_q B_k B_v  A_o B_o  … | layer 1 … |        fp32, as PEFT stores them

Each factor is a view into the vector under its PEFT name, so a saved adapter is PEFT's.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import chain, groupby, islice

import torch
from torch import Tensor, nn

from lorgnette.config import TARGET_MODULES, TargetModule
from lorgnette.device import PINNED_PIECE_BYTES, allocate_pinned_memory, copy_to_host, may_pin, split_each_row
from lorgnette.distributed import allocate_flat_grad
from lorgnette.kernels.multi_tensor_copy import CopyOp, MultiTensorCopy
from lorgnette.models.adapter_shape import FUSED_PROJECTIONS, AdapterShape
from lorgnette.models.lora_linear import LoraFactors
from lorgnette.models.networks import Decoder


class FlatLoraParams:
    """The fp32 master weights of the factors.

    `values` is the optimizer's only parameter. Its `.grad` is the front of `flat_grad`, which is allocated once.
    named_params, named_grads: views of both by the factors' names in PEFT's file, made at the first use.
    """

    def __init__(self, shape: AdapterShape, device: torch.device) -> None:
        self.shape = shape
        self.values = nn.Parameter(torch.zeros(shape.num_params, device=device))
        self.flat_grad = allocate_flat_grad([self.values])

    @cached_property
    def named_params(self) -> dict[str, Tensor]:
        return _split_into_views(self.shape, self.values.data)

    @cached_property
    def named_grads(self) -> dict[str, Tensor]:
        assert self.values.grad is not None
        return _split_into_views(self.shape, self.values.grad)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy the factors in; names and shapes are those of `shape.factor_shapes()`."""
        for name, view in self.named_params.items():
            view.copy_(state[name])

    def copy_from(self, values: Tensor) -> None:
        """Copy a whole flat vector in, laid out as `init_values` returns it."""
        self.values.data.copy_(values)

    def copy_to_cpu(self) -> dict[str, Tensor]:
        """A copy of the master weights by name."""
        return _split_into_views(self.shape, copy_to_host(self.values.detach()))

    def start_copy(self) -> Callable[[], dict[str, Tensor]]:
        """Copy the master weights as they are now to the CPU; on CUDA the host does not wait.

        The returned function waits for the copy and returns it by name, on any thread. What changes the weights next is
        launched on the same stream, so it comes after. The copy is in pinned memory, if that is not too much for the
        machine, and keeps it as long as its tensors live.
        """
        if not (self.values.is_cuda and may_pin(self.values.nbytes)):
            copy = self.copy_to_cpu()
            return lambda: copy
        groups = self._group_factors()
        pieces = self._allocate_pieces(groups)
        for piece, values in zip(pieces, torch.split(self.values.detach(), list(map(len, pieces))), strict=True):
            piece.copy_(values, non_blocking=True)
        done = torch.cuda.current_stream(self.values.device).record_event()

        def wait() -> dict[str, Tensor]:
            done.synchronize()
            views: dict[str, Tensor] = {}
            for piece, sizes in zip(pieces, groups, strict=True):
                parts = torch.split(piece, list(map(math.prod, sizes.values())))
                views |= {name: part.view(sizes[name]) for name, part in zip(sizes, parts, strict=True)}
            return views

        return wait

    def pin_host_memory(self) -> None:
        """Let torch pin what `start_copy` takes, before the GPU works. Does nothing on a CPU."""
        if self.values.is_cuda and may_pin(self.values.nbytes):
            self._allocate_pieces(self._group_factors())

    def _group_factors(self) -> list[dict[str, tuple[int, int]]]:
        return group_factors(self.shape, PINNED_PIECE_BYTES // self.values.itemsize)

    def _allocate_pieces(self, groups: Sequence[Mapping[str, tuple[int, int]]]) -> list[Tensor]:
        """A vector for each group of factors."""
        return allocate_pinned_memory([sum(map(math.prod, sizes.values())) for sizes in groups], self.values.dtype)

    @staticmethod
    def init_values(shape: AdapterShape, seed: int) -> Tensor:
        """A fresh adapter, bit for bit the one PEFT draws: A Kaiming-uniform (a = √5), B zero.

        PEFT initializes both linear layers of a module and then draws A again. The first two draws are discarded, so
        their bounds do not matter: one call draws for all neighbors whose A has the same bound, because each call to
        torch may lose Python's lock to another thread.
        """
        values, generator = torch.zeros(shape.num_params), torch.Generator().manual_seed(seed)
        views, modules = _split_into_views(shape, values), shape.select_adapted(TARGET_MODULES)

        # The draws of one layer: for each module A and B, which are discarded, and A.
        lengths = list[int]()
        for module in modules:
            a, b = (views[shape.format_name(0, module, factor)].numel() for factor in "AB")
            lengths += [a + b, a]
        draws = torch.empty(sum(lengths))
        kept = torch.split(draws, lengths)[1::2]

        # Those of neighbors with the same bound are one call.
        groups = [(inputs, len(list(group))) for inputs, group in groupby(modules, shape.in_features)]
        bounds, of_modules = [1 / math.sqrt(inputs) for inputs, _ in groups], iter(lengths)
        calls = torch.split(draws, [sum(islice(of_modules, 2 * count)) for _, count in groups])
        for layer in range(shape.text.num_layers):
            for call, bound in zip(calls, bounds, strict=True):
                call.uniform_(-bound, bound, generator=generator)
            for module, a_values in zip(modules, kept, strict=True):
                view = views[shape.format_name(layer, module, "A")]
                view.copy_(a_values.view_as(view))
        return values

    def attach(self, decoder: Decoder) -> MultiTensorCopy:
        """Let the decoder compute with these factors and add their gradients here.

        Returns the copy of the master weights into the decoder's matrices. It runs once here; call it again after
        every change of the master weights.
        """
        copies: list[CopyOp] = []
        for i, layer in enumerate(decoder.layers):
            for linear, group in zip(layer.linears, FUSED_PROJECTIONS, strict=True):
                if self.shape.select_adapted(group):
                    copies += linear.attach_adapter(self._build_factors(i, group), self.shape.scale)
        weight_copy = MultiTensorCopy(self.values.data, copies)
        weight_copy()
        return weight_copy

    def _build_factors(self, layer: int, group: tuple[TargetModule, ...]) -> LoraFactors:
        """Views for one fused matrix: the A factors as one matrix, the B factors with their output rows."""
        adapted = self.shape.select_adapted(group)
        rows = self.shape.split_rows(group)

        def join_a(views: Mapping[str, Tensor], flat: Tensor) -> Tensor:
            # The group's A factors are neighbors in the vector and have the same width.
            first = views[self.shape.format_name(layer, adapted[0], "A")]
            columns = self.shape.count_columns(group)
            return flat.as_strided((columns, first.shape[1]), (first.shape[1], 1), first.storage_offset())

        def select_b(views: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
            return tuple(views[self.shape.format_name(layer, target, "B")] for target in adapted)

        assert self.values.grad is not None
        return LoraFactors(
            tuple(rows[target] for target in adapted),
            join_a(self.named_params, self.values.data), select_b(self.named_params),
            join_a(self.named_grads, self.values.grad), select_b(self.named_grads),
        )  # fmt: skip


def group_factors(shape: AdapterShape, max_length: int) -> list[dict[str, tuple[int, int]]]:
    """Shapes by name of factors that are neighbors in the vector; more than max_length values only of one factor."""
    groups: list[dict[str, tuple[int, int]]] = []
    length = 0
    for name, size in shape.factor_shapes().items():
        length += math.prod(size)
        if not groups or length > max_length:
            groups.append({})
            length = math.prod(size)
        groups[-1][name] = size
    return groups


def _split_into_views(shape: AdapterShape, flat: Tensor) -> dict[str, Tensor]:
    """The factors by name, in the order of the vector."""
    sizes, num_layers = shape.factor_shapes(), shape.text.num_layers
    layers = flat.view(num_layers, len(flat) // num_layers)
    rows = split_each_row(layers, list(sizes.values())[: len(sizes) // num_layers])
    return dict(zip(sizes, chain.from_iterable(rows), strict=True))
