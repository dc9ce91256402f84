"""Answers to files of prompts: each record once, as if alone, and the same bytes whoever did it and was killed."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from helpers.chaos import Chaos, a_worker_process, the_driver
from helpers.model_folders import entropy_model_folder, entropy_rule, model_folder
from helpers.pipeline_helpers import letters, write_jsonl

from infra.batch import answers as answering
from infra.batch import splits
from infra.batch.answers import AnswerSettings, Prompt, answers, seed_of
from infra.batch_generate import main
from shared.io.files.digests import file_sha256
from shared.text.chat import END, ROLES, Turn
from trainer.generation.generator import Generator
from trainer.generation.sampling import SamplingSettings
from trainer.generation.settings import GenerateSettings

RECORDS = [{"id": f"r{number}", "prompt": f"prompt {number} " * (1 + number % 4)} for number in range(14)]
SMALL = ("--bytes", 12, "--rows", 3, "--split-bytes", 250)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("batch")
    return model_folder(folder / "model", entropy_rule(), entropy_model_folder(folder / "entropy_model"))


@pytest.fixture(scope="module")
def prompts(model: Path) -> Path:
    return write_jsonl(model.with_name("prompts.jsonl"), RECORDS)


@pytest.fixture(scope="module")
def quiet(model: Path, prompts: Path) -> Path:
    """What a run that nobody disturbed has made of them in one process."""
    out = model.with_name("quiet")
    assert run(model, prompts, "--out", out, *SMALL) == 0
    return out


def run(*arguments: object, workers: int = 1) -> int:
    return main([*map(str, arguments), "--executor", "inline", "--workers", str(workers)])


def answered(out: Path) -> list[dict]:
    """Every answer, in the order of files and lines."""
    found: list[dict] = []
    for path in sorted((out / "answers").iterdir()):
        if path.suffix == ".parquet":
            found += pq.read_table(path).to_pylist()
        else:
            with path.open("rb") as file:
                text = zstandard.ZstdDecompressor().stream_reader(file).read()
            found += map(json.loads, text.decode().splitlines())
    return found


def text_of(answer: dict) -> bytes:
    return bytes.fromhex(answer["text_hex"]) if answer.get("text_hex") else answer["text"].encode()


def product(out: Path) -> dict[str, str]:
    """sha256 of everything that is a result, and of markers."""
    files = [
        out / "answers.json",
        *(path for name in ("answers", "dead-letters", "splits") for path in out.glob(f"{name}/*")),
    ]
    return {str(path.relative_to(out)): file_sha256(path) for path in sorted(files)}


def generated(model: Path, asked: Sequence[bytes], ids: Sequence[str], **options: object) -> list[bytes]:
    """Each prompt by itself."""
    generator = Generator(model)
    settings = GenerateSettings.model_validate({"length": 12, **options})
    seeds = [SamplingSettings(seed=seed_of(settings.sampling.seed, id)) for id in ids]
    own = [settings.model_copy(update={"sampling": sampling}) for sampling in seeds]
    return [generator.texts([prompt], one)[0] for prompt, one in zip(asked, own)]


def test_every_record_is_answered_once_or_listed_with_a_reason(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl.gz"
    bad = ['{"text": "no prompt"}', '{"prompt": 5}', "no json", json.dumps({"prompt": "long" * 30})]
    lines = [json.dumps(record) for record in RECORDS[:5]]
    lines = [lines[0], bad[0], *lines[1:3], *bad[1:3], lines[3], bad[3], '{"prompt": ""}', lines[4]]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    out = tmp_path / "out"
    assert run(model, path, "--out", out, *SMALL, "--longest-prompt", 100) == 3
    found = answered(out)
    assert [answer["id"] for answer in found if answer["id"].startswith("r")] == [f"r{n}" for n in range(5)]
    assert len(found) == 6  # the empty prompt, too: a text from its beginning
    assert [letter["line"] for letter in letters(out)] == [2, 5, 6, 8]
    for letter, named in zip(letters(out), ("'prompt'", "a number", "not JSON", "--longest-prompt"), strict=True):
        assert named in letter["reason"]
    summary = json.loads((out / "answers.json").read_text())
    counts = summary["records"]
    assert (counts["records"], counts["documents"], counts["dead"]) == (10, 6, 4)
    assert summary["written"] == sum(len(text_of(answer)) for answer in found) == sum(a["bytes"] for a in found)
    assert sum(summary["ended"].values()) == 6
    assert all(0 <= answer["patches"] <= answer["bytes"] for answer in found)


@pytest.mark.numerics
def test_answers_are_those_of_each_prompt_alone_from_any_format(model: Path, quiet: Path, tmp_path: Path) -> None:
    found = answered(quiet)
    assert len({path.name for path in (quiet / "answers").iterdir()}) > 2
    alone = generated(model, [record["prompt"].encode() for record in RECORDS], [record["id"] for record in RECORDS])
    assert [text_of(answer) for answer in found] == alone
    assert len(set(alone)) == len(RECORDS)
    table = tmp_path / "prompts.parquet"
    pq.write_table(pa.Table.from_pylist(RECORDS), table, row_group_size=7)
    assert run(model, table, "--out", tmp_path / "table", *SMALL, "--format", "parquet") == 0
    rows = answered(tmp_path / "table")
    assert [text_of(answer) for answer in rows] == alone
    keys = ("id", "text", "ended", "bytes", "patches")
    assert [[row[key] for key in keys] for row in rows] == [[answer[key] for key in keys] for answer in found]
    assert [row["prompt"]["row"] for row in rows] == list(range(len(RECORDS)))


def test_a_killed_run_resumes_to_the_same_bytes(
    model: Path, prompts: Path, quiet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (model, prompts, *SMALL)
    out, marked, real = tmp_path / "out", list[str](), splits.write_marker

    def killed(where: Path, marker: splits.AnswersMarker) -> None:
        if len(marked) == 2:  # its answers are there under their name, and no marker says so
            raise KeyboardInterrupt
        marked.append(marker.split)
        real(where, marker)

    monkeypatch.setattr(splits, "write_marker", killed)
    assert run(*options, "--out", out) == 130
    monkeypatch.undo()
    assert len(list((out / "splits").iterdir())) == 2 < len(list((out / "answers").iterdir()))
    (out / "answers" / "0000000-00000.jsonl.zst.12345678.tmp").write_bytes(b"half")
    damaged = out / "answers" / f"{marked[0]}.jsonl.zst"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    kept = (out / "splits" / f"{marked[1]}.json").stat().st_mtime_ns
    assert run(*options, "--out", out) == 0
    assert product(out) == product(quiet)
    assert (out / "splits" / f"{marked[1]}.json").stat().st_mtime_ns == kept


@pytest.mark.drill
def test_two_processes_write_the_same_bytes(model: Path, prompts: Path, quiet: Path, tmp_path: Path) -> None:
    assert run(model, prompts, *SMALL, "--out", tmp_path / "two", workers=2) == 0
    assert product(tmp_path / "two") == product(quiet)
    logs = [path.read_text().split()[2] for path in (tmp_path / "two" / "logs").iterdir()]
    assert str(os.getpid()) not in logs


@pytest.mark.parametrize(
    ("option", "named"),
    [(("--seed", 1), "sampling.seed"), (("--stop", r"\n\n"), "stop"), (("--rows", 4), "rows")],
)
def test_other_settings_are_refused_by_name(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], option: tuple[object, ...], named: str
) -> None:
    prompts, out = write_jsonl(tmp_path / "one.jsonl", RECORDS[:1]), tmp_path / "out"
    assert run(model, prompts, "--out", out, "--bytes", 2) == 0
    before = product(out)
    assert run(model, prompts, "--out", out, "--bytes", 2, *option) == 2
    assert named in capfd.readouterr().err
    assert product(out) == before


def test_of_a_touched_file_content_decides(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prompts, out = write_jsonl(tmp_path / "one.jsonl", RECORDS[:1]), tmp_path / "out"
    assert run(model, prompts, "--out", out, "--bytes", 2) == 0
    before, marker = product(out), next((out / "splits").iterdir()).stat().st_mtime_ns
    os.utime(prompts, ns=(1, 1))
    assert run(model, prompts, "--out", out, "--bytes", 2) == 0
    assert (product(out), next((out / "splits").iterdir()).stat().st_mtime_ns) == (before, marker)
    prompts.write_bytes(prompts.read_bytes().replace(b"prompt 0", b"prompt 9"))
    assert run(model, prompts, "--out", out, "--bytes", 2) == 2
    assert "one.jsonl" in capfd.readouterr().err


def test_a_finished_run_needs_neither_torch_nor_ray_nor_its_workers(model: Path, tmp_path: Path) -> None:
    prompts = write_jsonl(tmp_path / "one.jsonl", RECORDS[:1])
    command = [str(model), str(prompts), "--out", str(tmp_path / "out"), "--bytes", "2"]
    assert run(*command) == 0
    program = f"import sys; from infra.batch_generate import main; code = main({command!r})\n"
    program += "sys.exit(code or ('torch' in sys.modules) * 8 or ('ray' in sys.modules) * 9)"
    again = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stdout


@pytest.mark.numerics
def test_chats_are_answered_and_those_that_have_their_answer_are_listed(tmp_path: Path) -> None:
    specials = (*ROLES, END)
    made = model_folder(tmp_path / "m", entropy_rule(), entropy_model_folder(tmp_path / "entropy_model"), specials)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Größe?"}]
    chats = [{"messages": turns}, {"messages": [*turns, {"role": "assistant", "content": "2"}]}, {"messages": []}]
    prompts, out = write_jsonl(tmp_path / "chats.jsonl", chats), tmp_path / "out"
    assert run(made, prompts, "--out", out, "--chat", "--bytes", 12) == 3
    (found,) = answered(out)
    generator = Generator(made)
    settings = GenerateSettings(length=12, sampling=SamplingSettings(seed=seed_of(0, found["id"])))
    asked = [Turn(turn["role"], turn["content"].encode()) for turn in turns]
    pieces = [piece for _, piece in generator.write_batch([asked], settings) if not piece.from_prompt]
    assert text_of(found) == b"".join(piece.byte for piece in pieces)
    assert found["ended"] == generator.ended[0]
    assert ["assistant" in letter["reason"] for letter in letters(out)] == [True, False]


def test_a_model_without_turns_answers_no_chats(model: Path, prompts: Path, tmp_path: Path) -> None:
    assert run(model, prompts, "--out", tmp_path / "out", "--chat") == 2
    assert not (tmp_path / "out").exists()


def test_prompts_are_taken_as_they_are_needed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "WAITING", 2)
    generator, taken = Generator(model), 0
    widest, batch = [0], generator.batch()
    real = batch.join
    monkeypatch.setattr(generator, "batch", lambda: batch)
    monkeypatch.setattr(batch, "join", lambda prompt: (real(prompt), widest.append(len(batch.rows)))[0])
    row = generator.row  # the first is longer than all others together
    own = {True: {"length": 40}, False: {"length": 1}}
    monkeypatch.setattr(
        generator, "row", lambda asked, settings: row(asked, settings.model_copy(update=own[asked == b"x"]))
    )

    def asked() -> Iterator[Prompt]:
        nonlocal taken
        for taken in range(1, 30):
            yield Prompt(f"{taken}", {}, b"x" * taken, taken)

    settings = AnswerSettings(generate=GenerateSettings(length=9), rows=3)
    most = 0
    for number, answer in enumerate(answers(generator, asked(), settings), 1):
        assert answer.id == f"{number}"
        most = max(most, taken - number + 1)
    assert number == 29
    assert max(widest) == 3
    assert most == 2 * 3


@pytest.mark.drill
@pytest.mark.parametrize("workers", [1, 2])
def test_kills_leave_no_trace(model: Path, tmp_path: Path, workers: int) -> None:
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"id": f"{n}", "prompt": f"{n} " * (1 + n % 9)} for n in range(600)])
    with prompts.open("a") as file:
        file.write('{"prompt": 1}\n')
    options = (model, prompts, "--bytes", 40, "--split-bytes", 3000, "--executor", "inline")
    assert main([*map(str, options), "--workers", "1", "--out", str(tmp_path / "quiet")]) == 3
    kills = {"driver": the_driver} | ({"worker": a_worker_process} if workers > 1 else {})
    chaos = Chaos(4, kills, pause=(3.0, 9.0), program="infra.batch_generate")
    chaos.finish([*options, "--workers", workers, "--out", tmp_path / "out"], tmp_path / "log")
    assert product(tmp_path / "out") == product(tmp_path / "quiet")
    assert set(chaos.done) == set(kills)


@pytest.mark.drill
def test_ray_writes_the_same_bytes(model: Path, prompts: Path, quiet: Path, tmp_path: Path) -> None:
    options = (model, prompts, *SMALL)
    command = [sys.executable, "-m", "infra.batch_generate", *map(str, options), "--out", str(tmp_path / "ray")]
    subprocess.run([*command, "--executor", "ray", "--workers", "2"], check=True)
    assert product(tmp_path / "ray") == product(quiet)
