"""The loader hands out one stream of packs, whatever the ranks, the workers and the stops (law 5)."""

import json
import multiprocessing
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.pack_examples import make_dataset, pack_digest, random_dataset, random_documents

from shared.errors import ConfigError, DatasetError, IdentityError
from shared.shards.dataset import Dataset
from shared.shards.open import open_dataset
from shared.shards.runs import ROW_BITS
from trainer.data import loader
from trainer.data.documents import Documents, gather_documents
from trainer.data.loader import TOGETHER, PackDataset, PackLoader, WorkerError, stateful_loader
from trainer.data.packing import planner
from trainer.data.packing.build import build_packs
from trainer.data.packing.limits import PackLimits
from trainer.data.packing.packs import Pack, Packs, Step
from trainer.data.packing.planner import PackPlan
from trainer.data.sampling.cursor import Cursor, CursorState, first_cursor
from trainer.data.sampling.schedule import Mixing

LIMITS = PackLimits(64, 32)
G = 4
STREAMS = 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return random_dataset(tmp_path_factory.mktemp("data"), 9)


def take(dataset: Dataset, steps: int, ranks: int = 1, workers: int = 0, cursor: Cursor | None = None) -> list[Pack]:
    """The packs of some steps in the order of their numbers, gathered from all ranks."""
    packs: list[Pack] = []
    for rank in range(ranks):
        loader = PackLoader(
            dataset, LIMITS, G, seed=3, streams=STREAMS, rank=rank, ranks=ranks, workers=workers, cursor=cursor
        )
        found = iter(loader)
        packs += [next(found) for _ in range(steps * G // ranks)]
        assert loader.cursor == cursor_after(dataset, packs[-steps * G // ranks :], cursor)
    return sorted(packs, key=lambda pack: pack.number)


def cursor_after(dataset: Dataset, packs: list[Pack], begun: Cursor | None = None) -> Cursor:
    """The data state after the steps of some packs that follow one another, from that before the first."""
    state = CursorState(begun or first_cursor(dataset, 3, STREAMS), dataset.subset_names)
    for pack in packs:
        state.apply(pack.step.change)
    return state.cursor


def digests(packs: list[Pack]) -> list[str]:
    return [pack_digest(pack) for pack in packs]


@pytest.fixture(scope="module")
def uninterrupted(dataset: Dataset) -> list[Pack]:
    return take(dataset, 12)


@pytest.fixture(scope="module")
def long(dataset: Dataset) -> list[Pack]:
    return take(dataset, 120)


@pytest.fixture(scope="module")
def long_digests(long: list[Pack]) -> list[str]:
    return digests(long)


def test_a_rank_gets_its_packs_in_order(dataset: Dataset, uninterrupted: list[Pack]) -> None:
    assert [pack.number for pack in uninterrupted] == list(range(12 * G))
    assert [pack.step.number for pack in uninterrupted] == [number // G for number in range(12 * G)]
    found = iter(PackLoader(dataset, LIMITS, G, seed=3, streams=STREAMS, rank=1, ranks=2, workers=2))
    assert [next(found).number for _ in range(9)] == list(range(1, 18, 2))


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_packs_do_not_depend_on_ranks_or_workers(
    dataset: Dataset, uninterrupted: list[Pack], ranks: int, workers: int
) -> None:
    assert digests(take(dataset, 4, ranks, workers)) == digests(uninterrupted[: 4 * G])


def shared_out(dataset: Dataset, cursor: Cursor | None, ranks: int, workers: int, steps: int) -> list[str]:
    """Digests of the packs of some steps, in order, of ranks whose loader workers take turns as processes would."""
    packs: list[Pack] = []
    for rank in range(ranks):
        cursor = cursor or first_cursor(dataset, 3, STREAMS)
        shares = [
            chain.from_iterable(PackDataset(dataset, LIMITS, G, Mixing(), cursor, rank, ranks)._packs(3 * n, 3, of))
            for of in [max(workers, 1)]
            for n in range(of)
        ]
        packs += [next(shares[number // 3 % len(shares)]) for number in range(steps * G // ranks)]
    return digests(sorted(packs, key=lambda pack: pack.number))


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_stream_is_one_whoever_reads_it_and_wherever_it_stopped(
    dataset: Dataset, long: list[Pack], long_digests: list[str], ranks: int, workers: int
) -> None:
    """From 3 random stops each, also far into later passes; other tests do it with real processes."""
    stops = np.random.default_rng(ranks * 10 + workers).integers(0, 118, 3)
    for stop in stops.tolist():
        cursor = Cursor.model_validate_json(cursor_after(dataset, long[: stop * G]).model_dump_json())
        assert shared_out(dataset, cursor, ranks, workers, 2) == long_digests[stop * G : (stop + 2) * G], stop


def test_resuming_after_any_step_is_never_stopping(dataset: Dataset, uninterrupted: list[Pack]) -> None:
    for step in range(11):
        cursor = cursor_after(dataset, uninterrupted[: step * G + 1])
        cursor = Cursor.model_validate(json.loads(json.dumps(cursor.model_dump())))
        rest = take(dataset, min(3, 11 - step), cursor=cursor)
        assert digests(rest) == digests(uninterrupted[(step + 1) * G :][: len(rest)])
        whole = uninterrupted[: (step + 1) * G + len(rest)]
        assert cursor_after(dataset, rest, cursor) == cursor_after(dataset, whole)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize(("ranks", "workers"), [(2, 1), (4, 0), (1, 3)])
def test_a_run_goes_on_with_other_ranks_and_workers(
    dataset: Dataset, uninterrupted: list[Pack], ranks: int, workers: int
) -> None:
    rest = take(dataset, 3, ranks, workers, cursor_after(dataset, uninterrupted[: 4 * G + 1]))
    assert digests(rest) == digests(uninterrupted[5 * G : 8 * G])


def test_every_pack_knows_the_targets_of_its_whole_step(uninterrupted: list[Pack]) -> None:
    for step in range(12):
        packs = uninterrupted[step * G : (step + 1) * G]
        assert {pack.step.targets for pack in packs} == {sum(pack.targets for pack in packs)}
        assert {pack.step.bytes for pack in packs} == {sum(int(pack.slice_bytes.sum()) for pack in packs)}


@pytest.mark.parametrize("workers", [0, 2])
def test_the_state_of_torchdatas_loader_resumes_inside_a_step(
    dataset: Dataset, uninterrupted: list[Pack], workers: int
) -> None:
    def shell():
        packs = PackDataset(dataset, LIMITS, G, Mixing(), first_cursor(dataset, 3, STREAMS), 0, 1)
        return stateful_loader(packs, workers)

    for messages in (1, 3, 4):
        loader = shell()
        taken = sum(len(packs) for message in islice(loader, messages) for packs in message)
        assert taken == messages * TOGETHER
        resumed = shell()
        resumed.load_state_dict(loader.state_dict())
        rest = list(islice((pack for message in resumed for packs in message for pack in packs), 9))
        assert digests(rest) == digests(uninterrupted[taken : taken + 9])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_second_iteration_goes_on_after_the_last_step(
    dataset: Dataset, uninterrupted: list[Pack], workers: int
) -> None:
    loader = PackLoader(dataset, LIMITS, G, seed=3, streams=STREAMS, workers=workers)
    for _, pack in zip(range(2 * G), loader):
        assert pack.step.number < 2
    assert pack_digest(next(iter(loader))) == pack_digest(uninterrupted[2 * G])


def test_other_seeds_give_other_packs(dataset: Dataset, uninterrupted: list[Pack]) -> None:
    found = iter(PackLoader(dataset, LIMITS, G, seed=4, streams=STREAMS))
    assert pack_digest(next(found)) != pack_digest(uninterrupted[0])


def test_the_cursor_is_small_and_plain(dataset: Dataset, uninterrupted: list[Pack]) -> None:
    cursor = cursor_after(dataset, uninterrupted)
    text = json.dumps(cursor.model_dump())
    assert len(text) < 400 + 40 * STREAMS
    assert Cursor.model_validate_json(text) == cursor


def test_other_data_is_refused(tmp_path: Path, dataset: Dataset) -> None:
    other = random_dataset(tmp_path, 10)
    with pytest.raises(IdentityError, match=r"not the data that this run began with"):
        PackLoader(other, LIMITS, G, cursor=first_cursor(dataset, 0, STREAMS))


def test_ranks_must_share_the_packs_of_a_step_equally(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"data.packs is 4, .*multiple of 3"):
        PackLoader(dataset, LIMITS, G, ranks=3)


def test_a_cursor_of_steps_of_another_size_is_refused(dataset: Dataset, uninterrupted: list[Pack]) -> None:
    with pytest.raises(ConfigError, match=r"data.packs is 8, .*4 packs"):
        PackLoader(dataset, LIMITS, 8, cursor=cursor_after(dataset, uninterrupted[:1]))


def test_a_cursor_that_no_patch_ends_at_is_refused(dataset: Dataset) -> None:
    unpatched = PackLoader(dataset, PackLimits(64, None), G)
    cursors = [unpatched.cursor for _ in islice(unpatched, 8 * G)][::G]
    refused = 0
    for cursor in cursors:
        try:
            PackLoader(dataset, LIMITS, G, cursor=cursor)
        except IdentityError as error:
            assert "where these packs cannot" in str(error)  # noqa: PT017
            refused += 1
    assert refused > 0


def test_an_empty_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no documents"):
        PackLoader(make_dataset(tmp_path, [[]]), LIMITS, G)


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_found_by_a_worker_is_one_error_that_names_the_file(tmp_path: Path, workers: int) -> None:
    rows = random_documents(1, 40)
    make_dataset(tmp_path, [rows[:20], rows[20:]])
    path = tmp_path / "shard-00001.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"shard-00001.arrow is damaged"):
        for _, _pack in zip(range(40), PackLoader(open_dataset(tmp_path), LIMITS, G, workers=workers)):
            pass


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_packs_before_a_damaged_one_arrive(tmp_path: Path, workers: int) -> None:
    """Also where it was to be built with them; of unpatched ones planning reads no documents."""
    rows = random_documents(1, 400)
    whole = make_dataset(tmp_path, [rows[:396], rows[396:]])
    limits = PackLimits(64, None)
    intact = list(islice(PackLoader(whole, limits, G, seed=1), 80))
    before = [bool((pack.document >> ROW_BITS == 1).any()) for pack in intact].index(True)
    assert before % TOGETHER > 0
    damaged = tmp_path / "shard-00001.arrow"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    found, others = list[Pack](), set(multiprocessing.active_children())
    with pytest.raises(DatasetError, match=r"shard-00001\.arrow is damaged"):
        found.extend(PackLoader(open_dataset(tmp_path), limits, G, seed=1, workers=workers))
    assert digests(found) == digests(intact[:before])
    assert set(multiprocessing.active_children()) <= others, "workers end with the stream, whoever keeps the error"


@pytest.mark.parametrize("errors", [1, 2])
def test_packs_that_are_read_alone_at_last_are_one_message(dataset: Dataset, monkeypatch, errors: int) -> None:
    """Messages of workers are taken by turns: were there more of one worker, its packs would come too late."""
    left = [errors]

    def failing(planned: Sequence[tuple[PackPlan, Step]], *arguments: Any) -> Packs:
        if left[0] and (len(planned) > 1 or planned[0][0].number == 5):
            left[0] -= 1
            raise OSError("try again")
        return build_packs(planned, *arguments)

    monkeypatch.setattr(loader, "build_packs", failing)
    monkeypatch.setattr(loader, "get_worker_info", lambda: SimpleNamespace(id=0, num_workers=2))
    monkeypatch.setattr(loader, "gc", SimpleNamespace(freeze=int))
    message = next(iter(PackDataset(dataset, LIMITS, G, Mixing(), first_cursor(dataset, 3, STREAMS))))
    packs = [pack.number for one in message if isinstance(one, Packs) for pack in one]
    assert packs == list(range(TOGETHER if errors == 1 else 5))
    assert isinstance(message[-1], OSError) == (errors == 2)


def test_an_index_that_does_not_fit_its_rows_names_shard_and_document(dataset: Dataset, monkeypatch) -> None:
    """As if index and shard had been made by two programs that disagree: both are whole, by their sha256."""
    packs = PackDataset(dataset, LIMITS, G, Mixing(), first_cursor(dataset, 0, STREAMS))

    def other(*arguments: Any) -> Documents:
        documents = gather_documents(*arguments)
        documents.values[2] += 1  # inputs
        return documents

    monkeypatch.setattr(planner, "gather_documents", other)
    with pytest.raises(DatasetError, match=r"shard-0000\d.arrow: document '9-\d+' has "):
        next(iter(packs))


def test_a_worker_that_dies_is_one_line_and_ends_the_others(dataset: Dataset) -> None:
    others = set(multiprocessing.active_children())
    packs = iter(PackLoader(dataset, LIMITS, G, workers=2))
    next(packs)
    next(iter(set(multiprocessing.active_children()) - others)).kill()
    with pytest.raises(WorkerError, match="loader worker has died"):
        list(islice(packs, 100))
    assert set(multiprocessing.active_children()) <= others


@pytest.mark.parametrize("error", [EOFError("unexpected EOF"), BlockingIOError(11, "Resource temporarily unavailable")])
def test_a_worker_that_cannot_be_started_is_one_line(dataset: Dataset, monkeypatch, error: Exception) -> None:
    """As multiprocessing says it where no more processes are allowed; the limit does not bind root, so it is raised."""

    def refused(*_: object) -> None:
        raise error

    monkeypatch.setattr("shared.io.programs.child_processes._WorkerProcess._Popen", refused)
    with pytest.raises(WorkerError, match=rf"^no loader worker starts: .*{error.args[-1]}.*ulimit"):
        next(iter(PackLoader(dataset, LIMITS, G, workers=1)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_has_been_cut_short_or_taken_away_is_named(tmp_path: Path, workers: int) -> None:
    rows = random_documents(1, 40)
    make_dataset(tmp_path, [rows[:20], rows[20:]])
    shard = tmp_path / "shard-00001.arrow"
    content = shard.read_bytes()
    cut = (content[:-100], r"is damaged: \d+ bytes, manifest says \d+$")
    for damage, words in (cut, (None, "is missing; the manifest")):
        shard.unlink()
        if damage is not None:
            shard.write_bytes(damage)
        with pytest.raises(DatasetError, match=rf"^\S*shard-00001.arrow {words}"):
            for _, _pack in zip(range(40), PackLoader(open_dataset(tmp_path), LIMITS, G, workers=workers)):
                pass
