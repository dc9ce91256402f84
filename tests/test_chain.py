"""The whole chain on tiny sizes, through the same commands that a user types: raw text in, a trained model out."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.drill

ROOT = Path(__file__).parent.parent
ENTROPY = ["--model.width", "32", "--model.layers", "1", "--model.heads", "2", "--model.window", "64"]
BLT = [
    *("--model.encoder.width", "32", "--model.encoder.heads", "2", "--model.encoder.layers", "1"),
    *("--model.decoder.width", "32", "--model.decoder.heads", "2", "--model.decoder.layers", "1"),
    *("--model.global.width", "64", "--model.global.heads", "2", "--model.global.layers", "1"),
    *("--model.ngrams.rows", "512", "--model.window", "64"),
]


def run(*command: str | Path, cwd: Path = ROOT, code: int = 0) -> str:
    """What a command printed; its exit code must be the expected one."""
    finished = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    output = finished.stdout + finished.stderr
    assert finished.returncode == code, output
    return output


def pipeline(*arguments: str | Path, **options) -> str:
    return run(sys.executable, "-m", "pipeline", *arguments, **options)


def torchrun(recipe: str, *arguments: str | Path, ranks: int = 1, **options) -> str:
    program = Path(sys.executable).with_name("torchrun")
    return run(
        *(program, "--standalone", "--nproc-per-node", str(ranks), "trainer/main.py", f"trainer/recipes/{recipe}.toml"),
        *arguments,
        **options,
    )


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the chain has run once: corpus, entropy model, calibration, patched shards in both formats."""
    folder = tmp_path_factory.mktemp("chain")
    corpus = folder / "corpus.jsonl"
    languages = {
        "en": "the patch begins where the next byte is hard to guess ",
        "de": "wo das nächste Byte schwer ist ",
    }
    with corpus.open("w") as file:
        for number in range(160):
            language = ("en", "de")[number % 2]
            text = f"{number}: " + languages[language] * (3 + number % 5)
            file.write(json.dumps({"id": f"doc-{number}", "lang": language, "text": text}) + "\n")
    pipeline("preprocess", corpus, "--out", folder / "corpus", "--rule", "none", "--executor", "inline")
    torchrun(
        "entropy-small",
        *ENTROPY,
        *("--data.path", folder / "corpus", "--run.out", folder / "entropy", "--run.steps", "4"),
        *("--data.tokens", "2048", "--metrics.log_every", "1"),
    )
    pipeline(
        *("calibrate", folder / "corpus" / "train", "--entropy-model", folder / "entropy" / "model"),
        *("--target", "4.5", "--out", folder / "patching.json"),
    )
    for format in ("arrow", "webdataset"):
        pipeline(
            *("preprocess", folder / "corpus", "--out", folder / format, "--executor", "inline", "--format", format),
            *("--entropy-model", folder / "entropy" / "model", "--patching", folder / "patching.json"),
        )
    return folder


def train_blt(chain: Path, format: str, **options) -> str:
    return torchrun(
        "blt-small",
        *BLT,
        *("--data.path", chain / format, "--run.out", chain / f"blt-{format}", "--run.steps", "4"),
        *("--data.tokens", "2048", "--data.patches", "512", "--metrics.log_every", "1"),
        **options,
    )


def losses(run_folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_webdataset_shards_train_the_same_model_as_arrow_shards(chain: Path) -> None:
    for format in ("arrow", "webdataset"):
        train_blt(chain, format)
    assert len(losses(chain / "blt-arrow")) == 4
    assert losses(chain / "blt-arrow") == losses(chain / "blt-webdataset")


def test_the_model_folder_is_enough_to_score_and_to_write(chain: Path) -> None:
    if not (chain / "blt-arrow" / "model").exists():
        train_blt(chain, "arrow")
    moved = chain / "elsewhere"
    (chain / "blt-arrow" / "model").rename(moved)
    try:
        report = run(
            *(sys.executable, "-m", "trainer", "evaluate", moved, chain / "arrow", "--baselines"),
            *("--json", chain / "evaluation.json"),
        )
        for name in ("en", "de", "order-2", "xz", "entropy model"):
            assert name in report
        json.loads((chain / "evaluation.json").read_text())
        sample = run(sys.executable, "-m", "trainer", "generate", moved, "--prompt", "the patch", "--bytes", "8")
        assert "the patch" in sample
    finally:
        moved.rename(chain / "blt-arrow" / "model")


def test_a_finished_chain_is_current_and_does_nothing(chain: Path) -> None:
    train_blt(chain, "arrow")
    before = (chain / "blt-arrow" / "metrics.jsonl").stat()
    assert "current" in train_blt(chain, "arrow")
    assert (chain / "blt-arrow" / "metrics.jsonl").stat() == before
    again = pipeline(
        *("preprocess", chain / "corpus", "--out", chain / "arrow", "--executor", "inline"),
        *("--entropy-model", chain / "entropy" / "model", "--patching", chain / "patching.json"),
    )
    assert "current" in again


def test_a_shard_with_one_flipped_byte_stops_training_with_one_line(chain: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(chain / "arrow", damaged)
    shard = sorted((damaged / "train").glob("*.arrow"))[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    output = torchrun(
        "blt-small", *BLT, "--data.path", damaged, "--run.out", tmp_path / "run", "--run.steps", "2", code=1
    )
    told = [line for line in output.splitlines() if line.startswith("patchwork: error:")]
    assert len(told) == 1
    assert shard.name in told[0]
    assert "sha256" in told[0]
    assert f"{ROOT}/trainer" not in output  # no traceback of ours; torchrun adds its own report
