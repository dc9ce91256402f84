"""From settings to a sharded model: float8, recomputing, compiling, FSDP2 by unit; then values, whatever the layout."""

from itertools import pairwise
from math import gcd, lcm

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from shared.errors import ConfigError
from shared.layers.blocks import DTYPES, Block
from shared.layers.cross_attention import CrossAttention
from shared.model_folder.files import Model
from shared.model_folder.files import build_model as empty_model
from shared.models.initialise import set_initial_rows, without_values
from trainer.distributed.activation_checkpointing import recompute
from trainer.distributed.dtensor import local_slice, to_local
from trainer.distributed.float8 import check_float8, use_float8
from trainer.distributed.row_sharded_tables import RowTables, row_tables
from trainer.distributed.world import World
from trainer.settings import TrainSettings


def sharded_model(settings: TrainSettings, world: World) -> nn.Module:
    """The model of a recipe on this rank's device, its parameters sharded over ranks, fp32, and not yet filled.

    Raises ConfigError when ranks cannot be grouped as asked or float8 cannot be had.
    """
    parallel = settings.parallel
    check_float8(settings, world.device)
    mesh = sharding_mesh(world, parallel.shard)
    with without_values():
        model = empty_model(settings.model)
    if parallel.float8:
        use_float8(model)
    if parallel.activation_checkpointing != "none":
        for block in transformer_blocks(model):
            recompute(block, parallel.activation_checkpointing)
    if parallel.compile:
        compile_blocks(model, crosses=world.device.type == "cuda")
    dtype = DTYPES[settings.run.dtype]
    if model.ngrams is not None:
        model.ngrams = RowTables(model.ngrams, table_mesh(world, parallel.offload), dtype)
    if parallel.sharded(world.size, settings.run.dtype):
        shard(model, mesh, dtype, parallel.keep_gathered, parallel.offload)
    model.to_empty(device="cpu" if parallel.offload else world.device)
    return model


def sharding_mesh(world: World, ranks: int | None) -> DeviceMesh:
    """The ranks as FSDP sees them: [R], or [R / S copies, S ranks] where S = ``ranks`` neighbours share one copy.

    The number of a rank is the same on every mesh, so which packs it reads does not depend on it.

    Raises ConfigError when S does not divide R.
    """
    if ranks is None or ranks == world.size:
        return world.mesh
    if world.size % ranks:
        raise ConfigError(
            f"parallel.shard is {ranks}: it must divide the number of ranks, {world.size}; set --parallel.shard "
            f"{gcd(ranks, world.size)}, or start {lcm(ranks, world.size)} ranks"
        )
    return init_device_mesh(world.device.type, (world.size // ranks, ranks), mesh_dim_names=("replicate", "shard"))


def table_mesh(world: World, offload: bool) -> DeviceMesh:
    """The ranks [R] over which rows of tables are spread, whatever copies of the rest there are.

    A copy in each group of ranks would cost memory and a sum of rows over the copies, and save no waiting: the rows of
    a pack are asked for once.
    """
    return init_device_mesh("cpu", (world.size,)) if offload else world.mesh


def transformer_blocks(model: nn.Module) -> list[Block]:
    """All blocks of all stacks: what is recomputed, and what is compiled."""
    return [module for module in model.modules() if isinstance(module, Block)]


def units(model: nn.Module) -> list[nn.Module]:
    """The parts whose parameters are gathered together, in the order of a forward pass; the model is the last unit."""
    assert isinstance(model, Model)
    return [model.get_submodule(name) for name in model.settings.units]


def compile_blocks(model: nn.Module, crosses: bool = False) -> None:
    """Compile each block whole. Nothing is compiled again for other documents: a pack's two axes have fixed lengths.

    With ``crosses`` also attention between bytes and patches, which is a chain of pointwise work and sums by patch. Not
    on a CPU: there its sizes depend on the patches, and little of it can be compiled.
    """
    parts = [module for module in model.modules() if crosses and isinstance(module, CrossAttention)]
    for part in (*transformer_blocks(model), *parts):
        part.forward = torch.compile(part.forward, fullgraph=True)


def shard(
    model: nn.Module, mesh: DeviceMesh, dtype: torch.dtype, keep_gathered: bool = False, offload: bool = False
) -> None:
    """FSDP2 over every unit: fp32 shards, compute in ``dtype``, gradients summed in fp32.

    On one rank too it brings mixed precision and offloading. Inputs are not cast: rotary tables stay fp32. Tables that
    learn by rows look after themselves. While a unit computes forward the next one is gathered, as it is by itself on
    the way back.
    """
    apart = {table.weight for table in row_tables(model)}
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    host = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if offload else OffloadPolicy()
    for unit in (*units(model), model):
        fully_shard(
            unit,
            mesh=mesh,
            mp_policy=policy,
            offload_policy=host,
            reshard_after_forward=not keep_gathered,
            ignored_params=apart,
        )
    for unit, following in pairwise(units(model)):
        assert isinstance(unit, FSDPModule) and isinstance(following, FSDPModule)  # noqa: PT018
        unit.set_modules_to_forward_prefetch([following])


def scatter(model: nn.Module) -> None:
    """Give up what is gathered still: with ``keep_gathered`` a forward pass without a backward pass leaves it so."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def fill(model: nn.Module, seed: int) -> None:
    """Initialise every parameter from (seed, name), each rank its own rows of it.

    Drawing into the shards would give every rank the same numbers on a CPU mesh (pytorch#138329), and other numbers
    for every number of ranks.
    """
    assert not list(model.buffers()), "a buffer would be left uninitialised"
    for name, parameter in model.named_parameters():
        set_initial_rows(to_local(parameter), name, parameter.shape, seed, local_slice(parameter)[0].start or 0)
