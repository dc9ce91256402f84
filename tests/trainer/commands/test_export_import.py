"""`export-hf` and `import-hf`: the way there and back byte for byte, what is refused, and in how much memory."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers.counted_models import counted_folder
from helpers.custom_classes import modules_below, opened
from helpers.model_folders import entropy_model_folder, entropy_rule, identity_of, model_folder
from helpers.tiny_runs import STACK, STATIC, metric_lines, quiet_environment, tiny_data, tiny_settings
from helpers.tiny_runs import run as trained

from shared.incremental import DecodingState
from shared.io.files.digests import file_sha256
from shared.model_folder.files import build_model, save_model
from shared.model_folder.identity import load_settings, model_sha256
from shared.model_folder.tensors import TensorFolder, write_tensors
from shared.model_settings import EntropyModelSettings
from shared.patching import PatchingSettings
from shared.shards.manifest import EntropyModelIdentity, load_manifest
from shared.shards.open import open_dataset
from shared.stack_settings import StackSettings
from shared.text.chat import Turn, prompt_tokens
from shared.vocabulary import BOE, BOS, EOS, RESERVED, token_bytes
from trainer.__main__ import main
from trainer.evaluation.compatibility import check_patches
from trainer.generation.generator import Generator
from trainer.generation.sampling import SamplingSettings
from trainer.generation.settings import GenerateSettings
from trainer.provenance.identity import IDENTITY_NAME, ModelIdentity, model_identity, save_identity

GREEDY = SamplingSettings(temperature=0)
FILES = ("model.safetensors", "config.json", "entropy_model/model.safetensors", "entropy_model/config.json")
EXPORTED = {
    "README.md",
    "config.json",
    "generation_config.json",
    "modeling_patchwork_blt.py",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def entropy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return entropy_model_folder(tmp_path_factory.mktemp("entropy_model") / "model")


@pytest.fixture(scope="module")
def rule() -> PatchingSettings:
    return entropy_rule()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, entropy_model: Path, rule: PatchingSettings) -> Path:
    return model_folder(tmp_path_factory.mktemp("model") / "model", rule, entropy_model)


def run(*arguments: Any) -> int:
    return main([str(argument) for argument in arguments])


def identity(folder: Path) -> ModelIdentity:
    return model_identity(folder)


class Exported(NamedTuple):
    """A model's export, what was made of that, and what the commands showed."""

    there: Path
    back: Path
    shown_there: str
    shown_back: str


def there_and_back(folder: Path, model: Path, *options: Any) -> Exported:
    with redirect_stdout(io.StringIO()) as shown_there:
        assert run("export-hf", model, folder / "hf", *options) == 0
    with redirect_stdout(io.StringIO()) as shown_back:
        assert run("import-hf", folder / "hf", folder / "back") == 0
    return Exported(folder / "hf", folder / "back", shown_there.getvalue(), shown_back.getvalue())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Exported:
    """In one file."""
    return there_and_back(tmp_path_factory.mktemp("whole"), model)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Exported:
    """In several."""
    return there_and_back(tmp_path_factory.mktemp("sharded"), model, "--shard-bytes", 20_000)


@pytest.fixture(params=["whole", "sharded"])
def exported(request: pytest.FixtureRequest) -> Exported:
    return request.getfixturevalue(request.param)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_small_model_is_exported_as_one_file(whole: Exported) -> None:
    assert names_in(whole.there) == EXPORTED | {"model.safetensors"}


def test_a_model_of_more_than_the_bytes_of_a_file_is_exported_as_several(sharded: Exported) -> None:
    names = names_in(sharded.there)
    assert len([name for name in names if name.startswith("model-0000")]) >= 3
    assert EXPORTED | {"model.safetensors.index.json"} <= names


def test_the_export_says_that_patches_are_not_cut_there_and_where_the_tokenizer_is(exported: Exported) -> None:
    assert "max_length 16" in exported.shown_there
    assert str(exported.there / "tokenizer.json") in exported.shown_there


@pytest.mark.parametrize("name", FILES)
def test_a_model_comes_back_byte_for_byte(exported: Exported, model: Path, name: str) -> None:
    assert (exported.back / name).read_bytes() == (model / name).read_bytes()


def test_a_model_comes_back_with_its_patches(exported: Exported, model: Path) -> None:
    found, wanted = identity(exported.back), identity(model)
    assert (found.patching, found.entropy_model) == (wanted.patching, wanted.entropy_model)
    assert "rule 'entropy', theta" in exported.shown_back


def test_a_model_that_the_class_of_the_folder_has_saved_comes_back(
    exported: Exported, model: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    there = AutoModelForCausalLM.from_pretrained(exported.there, trust_remote_code=True)
    there.save_pretrained(tmp_path / "saved")
    assert run("import-hf", tmp_path / "saved", tmp_path / "back") == 0
    for name in FILES:
        assert (tmp_path / "back" / name).read_bytes() == (model / name).read_bytes()
    assert identity(tmp_path / "back").patching == identity(model).patching


def test_an_imported_model_names_its_files_and_no_data(exported: Exported) -> None:
    found = identity(exported.back)
    assert found.data == {}
    sources = [path for path in exported.there.iterdir() if path.suffix == ".safetensors" or path.name == "config.json"]
    hashes = {path.name: file_sha256(path) for path in sources}
    assert found.config["imported"] == {"layout": "transformers", "sha256": hashes}


def test_an_imported_model_writes_what_the_exported_one_writes(tmp_path: Path, model: Path) -> None:
    assert run("export-hf", model, tmp_path / "hf") == 0
    assert run("import-hf", tmp_path / "hf", tmp_path / "back") == 0
    settings = GenerateSettings(length=20)
    first, second = (list(Generator(folder).write(b"some ", settings)) for folder in (model, tmp_path / "back"))
    assert first == second


def foreign(tmp_path: Path, model: Path) -> Path:
    """The model as a folder that says nothing of where it comes from."""
    assert run("export-hf", model, tmp_path / "hf") == 0
    path = tmp_path / "hf" / "config.json"
    config = json.loads(path.read_text())
    del config["patchwork"]
    path.write_text(json.dumps(config))
    return tmp_path / "hf"


def test_a_folder_of_others_gives_an_exact_threshold_and_the_longest_patches(
    tmp_path: Path, model: Path, rule: PatchingSettings
) -> None:
    assert run("import-hf", foreign(tmp_path, model), tmp_path / "back") == 0
    found = identity(tmp_path / "back").patching
    assert found == PatchingSettings(rule="entropy", theta=rule.theta, max_length=65_535)


def test_a_folder_of_others_gives_an_entropy_model_that_was_never_measured(tmp_path: Path, model: Path) -> None:
    assert run("import-hf", foreign(tmp_path, model), tmp_path / "back") == 0
    found = identity(tmp_path / "back").entropy_model
    assert found is not None
    assert (found.sha256, found.numerics.probe) == (model_sha256(tmp_path / "back" / "entropy_model"), "")


def test_a_model_of_others_generates(tmp_path: Path, model: Path) -> None:
    assert run("import-hf", foreign(tmp_path, model), tmp_path / "back") == 0
    assert list(Generator(tmp_path / "back").write(b"some ", GenerateSettings(length=3)))


def test_a_folder_of_others_may_be_given_a_threshold_and_a_length(tmp_path: Path, model: Path) -> None:
    given = ("--theta", "0.25", "--max-length", "99")
    assert run("import-hf", foreign(tmp_path, model), tmp_path / "other", *given) == 0
    assert identity(tmp_path / "other").patching == PatchingSettings(rule="entropy", theta=0.25, max_length=99)


def test_an_imported_model_may_be_evaluated_wherever_its_own_entropy_model_scored(tmp_path: Path, model: Path) -> None:
    assert run("import-hf", foreign(tmp_path, model), tmp_path / "back") == 0
    found, data = identity(tmp_path / "back"), tiny_data(tmp_path / "data", STATIC) / "train"
    manifest = load_manifest(data)
    scored = identity(model).entropy_model
    assert scored is not None
    assert found.entropy_model is not None
    for sha256, fits in ((found.entropy_model.sha256, True), ("0" * 64, False)):
        entropy_model = EntropyModelIdentity(
            sha256=sha256, numerics=scored.numerics.model_copy(update={"probe": "measured"})
        )
        made = manifest.identity.model_copy(update={"patching": found.patching, "entropy_model": entropy_model})
        manifest.model_copy(update={"identity": made}).save(data)
        dataset = open_dataset(data)
        if fits:
            check_patches(tmp_path / "back", dataset)
        else:
            with pytest.raises(ValueError, match="entropy model 000000000000, not"):
                check_patches(tmp_path / "back", dataset)


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Exported:
    """In bfloat16."""
    options = ("--dtype", "bfloat16", "--shard-bytes", 20_000)
    return there_and_back(tmp_path_factory.mktemp("rounded"), model, *options)


def test_rounding_to_bf16_is_said(rounded: Exported) -> None:
    assert "rounded to bfloat16" in rounded.shown_there


def test_bf16_is_stored_for_the_model_and_not_the_entropy_model(rounded: Exported) -> None:
    exported = TensorFolder(rounded.there)
    wrong = {
        name: exported.dtype(name)
        for name in exported.names()
        if exported.dtype(name) != (torch.float32 if "patcher" in name else torch.bfloat16)
    }
    assert wrong == {}


def test_a_model_in_bf16_is_loaded_in_fp32_without_a_tensor_too_few_or_too_many(rounded: Exported) -> None:
    from transformers import AutoModelForCausalLM

    loaded, found = AutoModelForCausalLM.from_pretrained(rounded.there, output_loading_info=True)
    assert loaded.dtype == torch.float32  # as config.json says
    assert (list(found["missing_keys"]), list(found["unexpected_keys"])) == ([], [])


def test_a_model_comes_back_from_bf16_rounded(rounded: Exported, model: Path) -> None:
    before, after = TensorFolder(model), TensorFolder(rounded.back)
    assert all(torch.equal(after.read(name), before.read(name).bfloat16().float()) for name in before.names())


def test_an_entropy_model_comes_back_from_bf16_as_it_was(rounded: Exported, model: Path) -> None:
    assert (rounded.back / FILES[2]).read_bytes() == (model / FILES[2]).read_bytes()
    assert identity(rounded.back).entropy_model == identity(model).entropy_model


def test_data_scored_in_bf16_is_said(tmp_path: Path, entropy_model: Path, rule: PatchingSettings, capsys) -> None:
    folder = model_folder(tmp_path / "model", rule, entropy_model)
    recorded = identity(folder)
    assert recorded.entropy_model is not None
    numerics = recorded.entropy_model.numerics.model_copy(update={"dtype": "bfloat16"})
    changed = recorded.entropy_model.model_copy(update={"numerics": numerics})
    save_identity(recorded.model_copy(update={"entropy_model": changed}), folder / IDENTITY_NAME)
    assert run("export-hf", folder, tmp_path / "hf") == 0
    assert "note: the data was scored in bfloat16" in capsys.readouterr().out


SEVERAL = PatchingSettings(rule="entropy", theta=1.0, thetas={"de": 2.0, "en": 3.0}, max_length=64)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, entropy_model: Path) -> Path:
    return model_folder(tmp_path_factory.mktemp("several") / "model", SEVERAL, entropy_model)


@pytest.mark.parametrize(
    ("options", "named"),
    [((), ["--theta 1.0", "--subset", "de, en"]), (("--subset", "fr"), ["de, en"])],
    ids=["none", "unknown"],
)
def test_which_of_several_thresholds_has_to_be_said(
    several: Path, tmp_path: Path, options: tuple[str, ...], named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export-hf", several, tmp_path / "none", *options) == 2
    refusal = capsys.readouterr().err
    assert [words for words in named if words not in refusal] == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("options", "theta"), [(("--subset", "de"), 2.0), (("--theta", "0.5"), 0.5)])
def test_one_of_several_thresholds_is_exported(
    several: Path, tmp_path: Path, options: tuple[str, str], theta: float
) -> None:
    found = there_and_back(tmp_path, several, *options)
    assert json.loads((found.there / "config.json").read_text())["patching_threshold"] == theta
    assert identity(found.back).patching == PatchingSettings(rule="entropy", theta=theta, max_length=64)


def changed_model(folder: Path, rule: PatchingSettings, entropy_model: Path, **model: Any) -> Path:
    settings = tiny_settings(Path("x"), Path("y")).model.model_copy(update=model)
    save_model(build_model(settings), settings, folder, entropy_model)
    save_identity(identity_of(rule, entropy_model), folder / IDENTITY_NAME)
    return folder


def entropy_model_of(folder: Path, **changes: Any) -> Path:
    settings = EntropyModelSettings.model_validate({"width": 16, "layers": 1, "heads": 1, "window": 64} | changes)
    save_model(build_model(settings), settings, folder)
    return folder


BLOCKS = {
    "rope_scaling": {"kind": "yarn", "factor": 4.0, "high": 32.0, "strength": 1.1386, "windowed": False},
    "rotated": (True, False),
    "windows": (2, 0),
    "norm": "after",
    "qk_norm": "width",
    "biases": ("qkv", "attention_output", "gate_up", "down"),
    "head_dim": 6,
}
"""All that blocks may have unlike Llama's."""


def opened_alone(tmp_path: Path, entropy_model: Path, rule: PatchingSettings) -> Iterator[tuple[Path, str]]:
    """Folders that only their own class can open, and the reason for each."""
    for number, other in enumerate((STATIC, PatchingSettings(rule="byte"), PatchingSettings(rule="space"))):
        yield model_folder(tmp_path / f"rule-{number}", other, None), f"patches of rule '{other.rule}'"
    monotonic = PatchingSettings(rule="monotonic", theta=0.1)
    yield model_folder(tmp_path / "monotonic", monotonic, entropy_model), "patches of rule 'monotonic'"
    yield model_folder(tmp_path / "min", rule.model_copy(update={"min_length": 2}), entropy_model), "min_length 2"
    whole = rule.model_copy(update={"whole_characters": True})
    yield model_folder(tmp_path / "whole", whole, entropy_model), "whole_characters"
    tables = tiny_settings(Path("x"), Path("y")).model.ngrams.model_copy(update={"sizes": ()})
    yield changed_model(tmp_path / "no-ngrams", rule, entropy_model, ngrams=tables), "no n-gram embeddings"
    blocks = StackSettings.model_validate(STACK | BLOCKS)
    unlike = f"global with {', '.join(blocks.unlike_llama)}: transformers' own class has no blocks but those of Llama"
    yield changed_model(tmp_path / "blocks", rule, entropy_model, global_=blocks), unlike
    local = {key: value for key, value in BLOCKS.items() if key != "windows"}
    patcher = entropy_model_of(tmp_path / "blocks-patcher", **local)
    yield model_folder(tmp_path / "inner-blocks", rule, patcher), "entropy model with rope_scaling, rotated, norm"
    reset = model_folder(tmp_path / "reset", rule, entropy_model_of(tmp_path / "reset-patcher", newline_reset=True))
    yield reset, "an entropy model with newline_reset"
    counts = counted_folder(tmp_path / "table", [b"some text, and some more of it"])
    counted = model_folder(tmp_path / "counted", rule, counts)
    found = identity(counted)
    scored = EntropyModelIdentity(sha256=model_sha256(counts), numerics=None)
    save_identity(found.model_copy(update={"entropy_model": scored}), counted / IDENTITY_NAME)
    yield counted, "an entropy model that counts"


def test_what_only_the_class_of_the_folder_can_be_is_exported_with_the_reason_and_comes_back(
    tmp_path: Path, entropy_model: Path, rule: PatchingSettings
) -> None:
    for folder, words in opened_alone(tmp_path, entropy_model, rule):
        found = there_and_back(tmp_path / "exports" / folder.name, folder)
        alone = "opens only with trust_remote_code=True: transformers' own class cannot be this model"
        assert f"{alone} ({words}" in found.shown_there
        config = json.loads((found.there / "config.json").read_text())
        assert (config["model_type"], config["architectures"]) == ("patchwork_blt", ["PatchworkBltForCausalLM"])
        for name in FILES:
            if (folder / name).exists():
                assert (found.back / name).read_bytes() == (folder / name).read_bytes(), (folder, name)
        assert (found.back / "entropy_model").exists() == (folder / "entropy_model").exists()
        back, wanted = identity(found.back), identity(folder)
        assert (back.patching, back.entropy_model) == (wanted.patching, wanted.entropy_model)
        settings = GenerateSettings(length=6)
        first, second = (list(Generator(place).write(b"some ", settings)) for place in (folder, found.back))
        assert first == second


def test_a_threshold_that_was_changed_there_counts(tmp_path: Path, entropy_model: Path, rule: PatchingSettings) -> None:
    folder = model_folder(tmp_path / "model", rule.model_copy(update={"min_length": 2}), entropy_model)
    assert run("export-hf", folder, tmp_path / "hf") == 0
    path = tmp_path / "hf/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"patching_threshold": 1.5}))
    assert run("import-hf", tmp_path / "hf", tmp_path / "back") == 0
    assert identity(tmp_path / "back").patching.theta == 1.5
    words = model_folder(tmp_path / "words", PatchingSettings(rule="space"), None)
    assert run("export-hf", words, tmp_path / "words-hf") == 0
    assert run("import-hf", tmp_path / "words-hf", tmp_path / "words-back", "--theta", "1.5") == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"patchwork": None}, "patchwork: "),
        ({"patchwork": {"model": {"kind": "blt"}}}, "patchwork.*encoder"),
        ({"quantization_config": {"bits": 4}}, "quantised weights"),
        ({"patching_threshold": "high"}, "patching_threshold"),
    ],
)
def test_a_folder_of_its_own_class_alone_that_others_have_changed_is_refused_by_the_key(
    tmp_path: Path, change: dict[str, Any], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model_folder(tmp_path / "model", PatchingSettings(rule="space"), None)
    assert run("export-hf", folder, tmp_path / "hf") == 0
    path = tmp_path / "hf/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    capsys.readouterr()
    assert run("import-hf", tmp_path / "hf", tmp_path / "back") == 2
    error = capsys.readouterr().err
    assert re.search(named, error)
    assert error.count("\n") == 1, error
    assert not (tmp_path / "back").exists()


def refusals(tmp_path: Path, entropy_model: Path, rule: PatchingSettings) -> Iterator[tuple[Path, str]]:
    """Folders, and the reason why each is refused."""
    yield tmp_path, "is not a model folder"
    swapped = model_folder(tmp_path / "swapped", rule, entropy_model)
    weights = swapped / "entropy_model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    yield swapped, "not the model that was recorded"
    cut = model_folder(tmp_path / "cut", rule, entropy_model)
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-1])
    yield cut, "not a whole safetensors file"


def test_what_cannot_be_exported_is_refused_in_one_line_and_leaves_nothing(
    tmp_path: Path, entropy_model: Path, rule: PatchingSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, words in refusals(tmp_path, entropy_model, rule):
        assert run("export-hf", folder, tmp_path / "out") == 2, folder
        error = capsys.readouterr().err
        assert words in error, folder
        assert error.count("\n") == 1, error
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"local_attention_window_len": None}, "local_attention_window_len is null"),
        ({"cross_attn_k": 3}, "cross_attn_k is 2, cross_attn_k is 3"),
        ({"encoder_hash_byte_group_vocab": 7}, "encoder_hash_byte_group_vocab|encoder_hash_tok_embedding"),
        ({"model_type": "llama"}, "BltForCausalLM"),
    ],
)
def test_what_cannot_be_imported_is_refused_in_one_line_and_leaves_nothing(
    tmp_path: Path, model: Path, change: dict[str, Any], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hf = foreign(tmp_path, model)
    path = hf / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    capsys.readouterr()
    assert run("import-hf", hf, tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(named, line), line
    assert str(hf) in line
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("import-hf", tmp_path / "nowhere", tmp_path / "out") == 2
    assert str(tmp_path / "nowhere") in capsys.readouterr().err


@pytest.mark.parametrize("command", ["export-hf", "import-hf"])
def test_a_folder_that_is_there_is_not_touched(
    tmp_path: Path, model: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    source = model if command == "export-hf" else foreign(tmp_path, model)
    capsys.readouterr()
    assert run(command, source, tmp_path / "out") == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("export-hf", "--shard-bytes", "0"),
        ("export-hf", "--theta", "nan"),
        ("export-hf", "--license", "My own: licence"),
        ("import-hf", "--theta", "inf"),
        ("import-hf", "--max-length", "0"),
    ],
)
def test_bad_options_are_one_line(
    tmp_path: Path, model: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    command, *options = arguments
    with pytest.raises(SystemExit, match="2"):
        run(command, model, tmp_path / "out", *options)
    error = capsys.readouterr().err
    assert options[0] in error
    assert error.count("\n") == 1


MEASURED = """
import sys, threading, time
from pathlib import Path
from trainer.interchange.folders import ExportSettings, ImportSettings, export_hf, import_foreign
from shared.io.display.progress import Progress

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) >> 10

def there_and_back(model, out):
    export_hf(model, out / "there", ExportSettings(), line)
    import_foreign(out / "there", out / "back", ImportSettings(), line)

small, large, out = (Path(argument) for argument in sys.argv[1:])
line = Progress(silent=True, every_seconds=15.0)
there_and_back(small, out / "small")  # whatever is loaded on the way is loaded
before = peak = anonymous()
done = threading.Event()

def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous())

watcher = threading.Thread(target=watch)
watcher.start()
there_and_back(large, out)
done.set()
watcher.join()
print(peak - before)
"""
TABLE_MEGABYTES = 64


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.drill
def test_a_model_with_a_large_table_goes_there_and_back_in_a_fraction_of_its_memory(
    tmp_path: Path, model: Path, entropy_model: Path, rule: PatchingSettings
) -> None:
    small = tiny_settings(Path("x"), Path("y")).model
    tables = small.ngrams.model_copy(update={"rows": TABLE_MEGABYTES * (1 << 20) // 4 // 32 // 2})
    folder = changed_model(tmp_path / "model", rule, entropy_model)
    settings = small.model_copy(update={"ngrams": tables})
    (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace('"rows": 64', f'"rows": {tables.rows}')
    )
    assert load_settings(folder) == settings
    source, rows = TensorFolder(model), 2 * tables.rows
    shapes = {name: source.shape(name) for name in source.names()} | {"ngrams.weight": (rows, 32)}
    assert rows * 32 * 4 == TABLE_MEGABYTES << 20
    draws = np.random.default_rng(0)

    def produce(name: str):
        if name != "ngrams.weight":
            return source.read(name)
        return (torch.from_numpy(draws.random((1 << 16, 32), np.float32)) for _ in range(rows >> 16))

    write_tensors(folder / "model.safetensors", [(n, s, torch.float32) for n, s in shapes.items()], produce)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, model, folder, tmp_path],
        capture_output=True,
        text=True,
        env=quiet_environment(),
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < TABLE_MEGABYTES // 4, f"{done.stdout} MB for a table of {TABLE_MEGABYTES} MB"
    assert file_sha256(tmp_path / "back" / "model.safetensors") == file_sha256(folder / "model.safetensors")


CHAT = ("user", "assistant", "end")


@pytest.fixture(scope="module")
def named_model(tmp_path_factory: pytest.TempPathFactory, entropy_model: Path, rule: PatchingSettings) -> Path:
    """A model with special ids."""
    return model_folder(tmp_path_factory.mktemp("named") / "model", rule, entropy_model, CHAT)


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory, named_model: Path) -> Iterator[Exported]:
    with modules_below(tmp_path_factory.mktemp("modules")):
        yield there_and_back(tmp_path_factory.mktemp("there"), named_model)


def test_a_model_with_named_special_ids_opens_as_the_class_of_the_folder_alone(named: Exported) -> None:
    config = json.loads((named.there / "config.json").read_text())
    assert (config["vocab_size"], config["model_type"]) == (263, "patchwork_blt")
    assert re.search("trust_remote_code=True.*the special ids user, assistant, end", named.shown_there)
    written = json.loads((named.there / "generation_config.json").read_text())
    assert (written["eos_token_id"], written["suppress_tokens"]) == ([EOS, 262], [BOE, BOS, RESERVED, 260, 261])


@pytest.mark.parametrize("name", FILES)
def test_a_model_with_named_special_ids_comes_back_byte_for_byte(named: Exported, named_model: Path, name: str) -> None:
    assert (named.back / name).read_bytes() == (named_model / name).read_bytes()


def test_special_ids_that_are_no_chat_have_no_template(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", PatchingSettings(rule="space"), None, ("user", "mark"))
    found = there_and_back(tmp_path, folder)
    assert "chat_template" not in json.loads((found.there / "tokenizer_config.json").read_text())
    assert json.loads((found.there / "generation_config.json").read_text())["eos_token_id"] == EOS
    for name in FILES[:2]:
        assert (found.back / name).read_bytes() == (folder / name).read_bytes()


CHATS = [
    [("user", "print 7")],
    [("user", "a <|end|> b</s> <pad>"), ("assistant", "größer"), ("user", "")],
    [("user", "<\ufdd0|end|> \ufdd0 <<\ufdd0\ufdd0 <")],
]
"""Contents that look like special ids, and like what keeps these apart from contents."""


@pytest.mark.parametrize("chat", CHATS, ids=["one", "several", "marked"])
def test_a_chat_has_there_the_ids_the_logits_and_the_answer_that_it_has_here(
    named: Exported, named_model: Path, chat: list[tuple[str, str]]
) -> None:
    from transformers import AutoTokenizer

    turns = [Turn(role, content.encode()) for role, content in chat]
    messages = [{"role": role, "content": content} for role, content in chat]
    tokenizer, theirs = AutoTokenizer.from_pretrained(named.there, trust_remote_code=True), opened(named.there)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    wanted = prompt_tokens(turns, CHAT)
    assert prompt.input_ids[0].tolist() == wanted.tolist()
    whole = tokenizer.apply_chat_template(messages, return_dict=False)
    assert whole == [*wanted[:-1].tolist(), EOS]
    generator = Generator(named_model)
    state = DecodingState(generator.model, generator.identity.patching, generator.entropy_model)
    with torch.no_grad():
        logits = theirs(**prompt).logits[0]
        assert (logits - state.advance(prompt.input_ids).logits[0]).abs().max() < 1e-4
    answer = b"".join(
        piece.byte
        for _, piece in generator.write_batch([turns], GenerateSettings(length=20, sampling=GREEDY))
        if not piece.from_prompt
    )
    found = theirs.generate(**prompt, max_new_tokens=20, do_sample=False)[0, len(wanted) :]
    assert token_bytes(found.numpy()) == answer


def test_the_card_has_the_bits_per_byte_of_the_run_that_the_model_lies_in(tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "data", STATIC)
    assert trained(data, tmp_path / "run") == 0
    lines = [line for line in metric_lines(tmp_path / "run") if "validation" in line]
    bits = lines[-1]["validation"]["bits_per_byte"]
    assert run("export-hf", tmp_path / "run", tmp_path / "hf", "--license", "apache-2.0") == 0
    card = (tmp_path / "hf" / "README.md").read_text()
    assert f"| validation | {bits:.4f} bits per byte |" in card
    assert 'license: "apache-2.0"' in card
    assert f"| mean patch | {identity(tmp_path / 'run' / 'model').mean_patch_size:.2f} bytes" in card
    for split, fingerprint in identity(tmp_path / "run" / "model").data.items():
        assert f"| data `{split}` | fingerprint `{fingerprint}` |" in card
    # Figures of another run, or of an earlier step, are not this model's.
    path = tmp_path / "run" / IDENTITY_NAME
    recorded = json.loads(path.read_text())
    path.write_text(json.dumps(recorded | {"start": "0" * 64}))
    assert run("export-hf", tmp_path / "run" / "model", tmp_path / "other") == 0
    assert "| validation |" not in (tmp_path / "other" / "README.md").read_text()
    path.write_text(json.dumps(recorded))
    (tmp_path / "run" / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in metric_lines(tmp_path / "run") if line != lines[-1])
        + json.dumps(lines[-1] | {"step": lines[-1]["step"] - 1})
        + "\n"
    )
    assert run("export-hf", tmp_path / "run" / "model", tmp_path / "earlier") == 0
    assert "| validation |" not in (tmp_path / "earlier" / "README.md").read_text()
