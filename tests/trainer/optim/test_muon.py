"""Muon: the update of the whole matrix, whoever computes it and wherever its rows lie."""

import shutil
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers.muon_ranks import OUTPUTS, RULE, STEPS, by_hand, learn, momenta, muon_settings
from helpers.tiny_runs import (
    STATIC,
    losses,
    quiet_environment,
    run_identity_of,
    tiny_data,
    tiny_recipe,
    tiny_settings,
    toml,
    torchrun,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shared.layers.blocks import Block
from shared.model_folder.files import build_model as plain_model
from shared.model_folder.identity import model_sha256
from shared.models.blt import Blt
from trainer.checkpoints.initial_weights import build_model
from trainer.checkpoints.store import Checkpoints
from trainer.distributed.matrix_exchange import Piece, share_out
from trainer.distributed.world import started
from trainer.main import main
from trainer.optim.muon import MOMENTUM, Muon, orthogonalise
from trainer.optim.optimizer import build_optimizer
from trainer.optim.parameter_groups import FACTOR, inner_matrices
from trainer.settings import CheckpointSettings, MuonSettings, identity_dict

RANKS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("muon") / "data", STATIC)


@pytest.fixture(scope="module")
def saved(data: Path) -> Path:
    """What four ranks, two copies on two ranks each, have computed and saved."""
    out = data.parent / "ranks"
    out.mkdir()
    subprocess.run(
        torchrun("--module", "helpers.muon_ranks", data, out, ranks=RANKS),
        check=True,
        timeout=600,
        env=quiet_environment(),
    )
    return out


@pytest.fixture(scope="module")
def ranks(saved: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(saved / "ranks.safetensors")


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(16, 16), (40, 8), (8, 40), (1, 12)])
def test_singular_values_come_near_one_and_singular_vectors_stay(shape: tuple[int, int]) -> None:
    given_, found = matrix(*shape), orthogonalise(matrix(*shape), 5)
    left, _, right = torch.linalg.svd(given_, full_matrices=False)
    inside = left.T @ found @ right.T
    values = inside.diagonal()
    assert 0.3 < float(values.min()) <= float(values.max()) < 1.25
    torch.testing.assert_close(inside, torch.diag(values), rtol=0, atol=1e-4)


def test_neither_scale_nor_orientation_matters_and_nothing_stays_nothing() -> None:
    found = orthogonalise(matrix(6, 9), 5)
    torch.testing.assert_close(orthogonalise(1e-3 * matrix(6, 9), 5), found, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(orthogonalise(matrix(6, 9).T, 5).T, found, rtol=1e-5, atol=1e-6)
    assert torch.equal(orthogonalise(torch.zeros(4, 3), 5), torch.zeros(4, 3))


@pytest.mark.parametrize("nesterov", [True, False])
def test_a_step_is_that_of_torch_on_matrices_of_one_projection(nesterov: bool) -> None:
    shapes = [(12, 8), (8, 20), (5, 5)]
    ours, theirs = ([nn.Parameter(matrix(*shape, seed)) for seed, shape in enumerate(shapes)] for _ in range(2))
    rule = MuonSettings(nesterov=nesterov)
    groups = [{"params": ours, "weight_decay": 0.1, FACTOR: 1.0}]
    mine = Muon(groups, 0.05, rule, {weight: (len(weight),) for weight in ours})
    mine._dtype = torch.bfloat16  # as theirs always is
    oracle = torch.optim.Muon(theirs, lr=0.05, weight_decay=0.1, nesterov=nesterov, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        for number, shape in enumerate(shapes):
            ours[number].grad = matrix(*shape, 10 * step + number)
            theirs[number].grad = matrix(*shape, 10 * step + number)
        mine.step()
        oracle.step()
    for found, wanted in zip(ours, theirs):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_an_update_is_as_large_as_those_of_adamw() -> None:
    for shape in [(64, 64), (256, 64), (64, 256)]:
        weight = nn.Parameter(torch.zeros(shape))
        optimizer = Muon([{"params": [weight], FACTOR: 1.0}], 1.0, MuonSettings(), {weight: shape[:1]})
        weight.grad = matrix(*shape)
        optimizer.step()
        assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.2, rel=0.2)


def test_projections_in_one_matrix_are_matrices_of_their_own() -> None:
    found, first = by_hand(None)["fused"], 0
    assert len(found) == sum(OUTPUTS["fused"])
    weight = nn.Parameter(torch.zeros(13, 6))
    optimizer = Muon([{"params": [weight], FACTOR: 1.0}], 1.0, RULE, {weight: OUTPUTS["fused"]})
    weight.grad = matrix(13, 6)
    optimizer.step()
    for rows in OUTPUTS["fused"]:
        part = slice(first, first + rows)
        wanted = -orthogonalise(matrix(13, 6)[part], RULE.steps) * 0.2 * max(rows, 6) ** 0.5
        torch.testing.assert_close(weight.detach()[part], wanted, rtol=1e-5, atol=1e-6)
        first += rows


@pytest.fixture(scope="module")
def blt(data: Path) -> Blt:
    model = plain_model(muon_settings(data).model)
    assert isinstance(model, Blt)
    return model


def test_matrices_of_blocks_and_projections_learn_by_their_outputs(blt: Blt) -> None:
    width, local = blt.settings.global_.width, blt.settings.encoder.width
    wanted = {
        "global_.blocks.0.qkv.weight": (width, width, width),
        "global_.blocks.0.gate_up.weight": (32, 32),
        "decoder.cross.0.key_value.weight": (local, local),
        "encoder.patch_projection.weight": (2 * local,),
    }
    inner = inner_matrices(blt)
    assert {name: inner[name] for name in wanted} == wanted


def test_tables_heads_and_vectors_do_not_learn_so(blt: Blt) -> None:
    others = {name for name, _ in blt.named_parameters()} - inner_matrices(blt).keys()
    vectors = {name for name, parameter in blt.named_parameters() if parameter.ndim == 1}
    assert others == {"ngrams.weight", "encoder.embedding.weight", "decoder.head.weight"} | vectors


def test_outputs_of_a_matrix_are_all_its_rows(blt: Blt) -> None:
    inner = inner_matrices(blt)
    assert {name: sum(rows) for name, rows in inner.items()} == {name: len(blt.get_parameter(name)) for name in inner}


def test_a_projection_whose_module_was_replaced_learns_so_too(data: Path) -> None:
    model = plain_model(muon_settings(data).model)
    assert isinstance(model, Blt)
    wanted, block = inner_matrices(model), model.global_.blocks[0]
    assert isinstance(block, Block)
    block.gate_up = nn.Linear(*reversed(block.gate_up.weight.shape), bias=False)  # type: ignore[assignment]
    assert inner_matrices(model) == wanted
    optimizer = build_optimizer(model, muon_settings(data).optimizer)
    assert MOMENTUM in optimizer.state[block.gate_up.weight]


def test_a_frozen_matrix_has_no_momentum(data: Path) -> None:
    recipe = muon_settings(data)
    model = plain_model(recipe.model)
    rates = {"global_": 0.0}
    optimizer = build_optimizer(model, recipe.optimizer.model_copy(update={"rates": rates}))
    for name, parameter in model.named_parameters():
        remembers = MOMENTUM in optimizer.state.get(parameter, {})
        assert remembers == (name in inner_matrices(model) and not name.startswith("global_")), name


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(1, 9)), min_size=1, max_size=9),
    st.integers(1, 5),
)
def test_every_piece_has_one_owner_and_owners_have_like_work(shapes: list[tuple[list[int], int]], ranks: int) -> None:
    pieces = []
    for source, (outputs, width) in enumerate(shapes):
        first = 0
        for rows in outputs:
            pieces.append(Piece(source, range(first, first + rows), sum(outputs), width))
            first += rows
    rounds = share_out(pieces, ranks)
    owned = [[piece for owners in rounds for piece in owners[rank]] for rank in range(ranks)]
    assert sorted(repr(piece) for mine in owned for piece in mine) == sorted(map(repr, pieces))
    work = [sum(piece.cost for piece in mine) for mine in owned]
    assert max(work) <= sum(work) / ranks + max(piece.cost for piece in pieces)
    for piece in pieces:
        held = [number for rank in range(ranks) for number in piece.held(rank, ranks)]
        assert held == list(piece.rows)


@pytest.mark.drill
@pytest.mark.parametrize("kind", ["flat", "copies"])
def test_a_sharded_matrix_is_updated_as_a_whole_one_bit_for_bit(ranks: dict[str, Tensor], kind: str) -> None:
    """Rows that ranks cannot share equally, projections that lie across ranks, and ranks without any row."""
    for name, tensor in by_hand(None).items():
        assert torch.equal(ranks[f"{kind}/{name}"], tensor), name


@pytest.mark.drill
def test_training_on_two_copies_of_two_ranks_equals_that_of_one_process(data: Path, ranks: dict[str, Tensor]) -> None:
    recipe = muon_settings(data)
    with started(recipe.run) as world:
        alone = learn(recipe, world)
    assert alone.keys() == {name for name in ranks if name.startswith(("nats", "trained", "momentum"))}
    assert any(name.startswith("momentum") for name in alone)
    for name, tensor in alone.items():
        torch.testing.assert_close(ranks[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.drill
def test_momenta_of_four_ranks_come_back_on_one_bit_for_bit(data: Path, saved: Path, ranks: dict[str, Tensor]) -> None:
    recipe = muon_settings(data)
    with started(recipe.run) as world:
        model = build_model(recipe, world)
        optimizer = build_optimizer(model, recipe.optimizer)
        checkpoints = Checkpoints(saved, CheckpointSettings(), world)
        newest = checkpoints.newest()
        assert newest is not None
        assert checkpoints.load(newest, model, optimizer, run_identity_of(recipe)).step == STEPS
        found = momenta(model, optimizer)
    assert found
    for name, tensor in found.items():
        assert torch.equal(tensor, ranks[name]), name


def test_a_run_learns_and_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(data: Path, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(toml(tiny_recipe(data, whole, optimizer={"matrices": "muon"})))
    assert main([str(recipe)]) == 0
    shutil.copytree(whole, halves)  # as it was after step 3
    shutil.rmtree(halves / "model")
    shutil.rmtree(halves / "checkpoints" / "step-00000006")
    assert main([str(recipe), "--run.out", str(halves)]) == 0
    assert model_sha256(halves / "model") == model_sha256(whole / "model")
    assert losses(whole)[-1] < losses(whole)[0]


def test_how_muon_learns_belongs_to_runs_that_use_it(data: Path, tmp_path: Path) -> None:
    plain = tiny_settings(data, tmp_path, optimizer={"muon": {"steps": 3}})
    assert identity_dict(plain) == identity_dict(tiny_settings(data, tmp_path))
    used = [tiny_settings(data, tmp_path, optimizer={"matrices": "muon", "muon": {"steps": n}}) for n in (3, 5)]
    assert identity_dict(used[0]) != identity_dict(used[1])
