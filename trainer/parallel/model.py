"""From settings to a sharded model: recomputing, compiling, FSDP2 by unit, then values that no layout changes."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from shared.blt import Blt
from shared.entropy_model import EntropyModel
from shared.initialise import initial_value
from shared.model_files import build_model as empty_model
from trainer.learning.start import fill_from
from trainer.parallel.tables import RowTables, row_tables
from trainer.parallel.world import DTYPES, World
from trainer.settings import TrainSettings


def build_model(settings: TrainSettings, world: World) -> nn.Module:
    """The model of a recipe on this rank's device, its parameters sharded over all ranks, fp32, and as they begin.

    Raises ModelFileError when the model that it starts from does not fit.
    """
    with torch.device("meta"):
        model = empty_model(settings.model)
    if settings.parallel.activation_checkpointing == "full":
        recompute_blocks(model)
    if settings.parallel.compile:
        compile_blocks(model)
    dtype = DTYPES[settings.run.dtype]
    if isinstance(model, Blt):
        model.ngrams = RowTables(model.ngrams, world.mesh, dtype)
    shard(model, world, dtype, settings.parallel.keep_gathered)
    model.to_empty(device=world.device)
    if settings.start.model is None:
        fill(model, settings.run.seed)
    else:
        fill_from(model, settings.start.model)
    return model


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """All blocks of all stacks: what is recomputed, and what is compiled."""
    if isinstance(model, EntropyModel):
        return list(model.blocks)
    assert isinstance(model, Blt)
    return [*model.encoder.blocks, *model.decoder.blocks, *model.global_.blocks]


def units(model: nn.Module) -> list[nn.Module]:
    """The parts whose parameters are gathered together, inner ones first; the model itself is the last unit."""
    if isinstance(model, EntropyModel):
        return list(model.blocks)
    assert isinstance(model, Blt)
    return [model.encoder, *model.global_.blocks, model.decoder]


def recompute_blocks(model: nn.Module) -> None:
    """Keep only the inputs of blocks. Replaces forward, not the module, so that parameter names stay as they are."""
    for block in transformer_blocks(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compile_blocks(model: nn.Module) -> None:
    """Compile each block whole. Nothing is compiled again for other documents: a pack's two axes have fixed lengths."""
    for block in transformer_blocks(model):
        block.forward = torch.compile(block.forward, fullgraph=True)


def shard(model: nn.Module, world: World, dtype: torch.dtype, keep_gathered: bool = False) -> None:
    """FSDP2 over every unit: fp32 shards, compute in ``dtype``, gradients summed in fp32.

    Applied to one rank too: it brings the mixed precision. Inputs are not cast: rotary tables stay fp32. Tables that
    learn by rows look after themselves.
    """
    apart = {table.weight for table in row_tables(model)}
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for unit in (*units(model), model):
        fully_shard(
            unit, mesh=world.mesh, mp_policy=policy, reshard_after_forward=not keep_gathered, ignored_params=apart
        )


@torch.no_grad()
def fill(model: nn.Module, seed: int) -> None:
    """Initialise every parameter from (seed, name), each rank its slice of the whole.

    Drawing into the shards would give every rank the same numbers on a CPU mesh (pytorch#138329), and other numbers
    for every number of ranks.
    """
    assert not list(model.buffers()), "a buffer would be left uninitialised"
    for name, parameter in model.named_parameters():
        parameter.copy_(like(initial_value(name, parameter.shape, seed), parameter))


def like(full: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, which every rank has, laid out like a parameter; nothing is sent."""
    if not isinstance(parameter, DTensor):
        return full
    return distribute_tensor(full, parameter.device_mesh, parameter.placements, src_data_rank=None)
