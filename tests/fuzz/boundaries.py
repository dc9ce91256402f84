"""Where data from outside enters, and for each such boundary how valid artefacts are made, spoiled and read.

A boundary names the modules that read it; `test_fuzz.py` fails when a module that reads foreign data is named by none.
"""

import gzip
from dataclasses import dataclass

import fuzz_datasets as d
import fuzz_inputs as i
import fuzz_models as f
import fuzz_runs as r
import mutations as m
import zstandard
from fuzz_common import Action, Mutation


@dataclass(frozen=True)
class Boundary:
    """A kind of artefact from outside."""

    name: str
    modules: tuple[str, ...]
    """Files that read it, below the repository."""
    make: Action
    """Writes a valid artefact into an empty folder."""
    mutate: Mutation
    """Spoils the artefact in a folder, with checksums that fit; says what it did."""
    actions: tuple[Action, ...]
    """What reads it: a case does one of them, the valid artefact passes all."""


WRITES = (f.generate, f.chat)
"""What they print is what a model writes."""
DATASET_READERS = ("shared/shards/manifest.py", "shared/shards/dataset.py", "shared/io/stores/locations.py")
ARROW_ACTIONS = (d.verify, d.inspect, d.convert, d.merge, d.split, d.preprocess_again, d.read_rows, d.read_packs)

BOUNDARIES = (
    Boundary(
        "manifest",
        ("shared/shards/manifest.py", "pipeline/rewriting/rewrite.py"),
        d.dataset("arrow"),
        m.at("d/manifest.json", m.spoil_json),
        ARROW_ACTIONS,
    ),
    Boundary(
        "table",
        ("shared/shards/tables.py", "shared/shards/runs.py"),
        d.dataset("arrow", "uint8"),
        d.tables_fitted(m.at("d/tables/*.arrow", d.spoil_arrow)),
        ARROW_ACTIONS,
    ),
    Boundary(
        "index",
        ("shared/shards/index.py",),
        d.dataset("arrow"),
        d.fitted(m.at("d/*.index", d.spoil_arrow)),
        ARROW_ACTIONS,
    ),
    Boundary(
        "arrow shard",
        ("shared/shards/formats/arrow.py", "shared/shards/content.py"),
        d.dataset("arrow"),
        d.fitted(m.one_of([(5, m.at("d/*.arrow", d.spoil_arrow)), (1, m.at("d/*.arrow", d.swollen))])),
        ARROW_ACTIONS,
    ),
    Boundary(
        "webdataset shard",
        ("shared/shards/formats/webdataset.py", "shared/shards/formats/tar.py"),
        d.dataset("webdataset"),
        d.fitted(m.at("d/*.tar", d.spoil_tar)),
        (d.verify, d.convert, d.read_rows, d.read_packs),
    ),
    Boundary(
        "sidecar",
        ("shared/shards/formats/sidecar.py",),
        d.dataset("arrow", "uint8"),
        d.fitted(m.at("d/*.entropy", d.spoil_arrow)),
        (d.verify, d.inspect, d.recut, d.merge, d.read_recut_packs),
    ),
    Boundary(
        "dataset folder",
        DATASET_READERS,
        d.dataset("arrow", "uint8"),
        d.fitted(lambda rng, folder: m.spoil_folder(rng, folder / "d", huge=1 << 30)),  # all of it is hashed
        (*ARROW_ACTIONS, d.recut),
    ),
    Boundary(
        "targets",
        ("shared/distillation/targets_folder.py",),
        d.made_targets,
        m.one_of(
            [
                (2, m.at("t/targets.json", m.spoil_json)),
                (2, d.targets_fitted(m.at("t/shards.arrow", d.spoil_arrow), d.refitted.fit_target_table)),
                (3, d.targets_fitted(m.at("t/*.targets", m.spoil_safetensors), d.refitted.fit_targets)),
                (3, d.targets_fitted(m.at("t/*.targets", d.spoil_arrays), d.refitted.fit_targets)),
                (1, lambda rng, folder: m.spoil_folder(rng, folder / "t", huge=1 << 30)),
            ]
        ),
        (d.verify_with_targets, d.read_targets),
    ),
    Boundary(
        "model config",
        ("shared/model_folder/identity.py",),
        f.made_model,
        m.at("m/**/config.json", m.spoil_json),
        (f.generate, f.export_hf),
    ),
    Boundary(
        "model identity",
        ("trainer/provenance/identity.py",),
        f.made_model,
        m.at("m/**/identity.json", m.spoil_json),
        (f.generate, f.export_hf),
    ),
    Boundary(
        "model weights",
        ("shared/model_folder/files.py", "shared/model_folder/tensors.py", "shared/model_folder/tensor_header.py"),
        f.made_model,
        m.at("m/**/*.safetensors", m.spoil_safetensors),
        (f.generate, f.export_hf),
    ),
    Boundary(
        "model folder",
        ("shared/model_folder/files.py",),
        f.made_entropy,
        lambda rng, folder: m.spoil_folder(rng, folder / "m"),
        (f.generate, f.score_with),
    ),
    Boundary(
        "model that counts",
        ("shared/counts/files.py", "shared/counts/table.py"),
        f.made_counts,
        m.one_of(
            [
                (3, m.at("m/*.safetensors", m.spoil_safetensors)),
                (1, m.at("m/config.json", m.spoil_json)),
                (1, lambda rng, folder: m.spoil_folder(rng, folder / "m")),
            ]
        ),
        (f.score_with,),
    ),
    Boundary(
        "hugging face folder",
        ("shared/interop/opening.py", "shared/interop/described.py", "trainer/commands/import_hf.py"),
        f.made_hf,
        m.one_of(
            [
                (4, m.at("hf/*.json", m.spoil_json)),
                (2, m.at("hf/*.safetensors", m.spoil_safetensors)),
                (1, lambda rng, folder: m.spoil_folder(rng, folder / "hf")),
            ]
        ),
        (f.import_hf,),
    ),
    Boundary(
        "hugging face folder of its own class",
        ("shared/interop/hf_reading.py", "shared/interop/transfer.py"),
        f.made_hf_of_counts,
        m.one_of(
            [
                (4, m.at("hf/config.json", m.spoil_json)),
                (3, m.at("hf/*.safetensors", m.spoil_safetensors)),
                (1, lambda rng, folder: m.spoil_folder(rng, folder / "hf")),
            ]
        ),
        (f.import_hf,),
    ),
    Boundary(
        "hugging face folder of another kind",
        ("shared/interop/hf_reading.py", "shared/interop/opening.py"),
        f.made_hf_of_subwords,
        m.one_of(
            [
                (4, m.at("hf/config.json", m.spoil_json)),
                (1, m.at("hf/tokenizer/*.json", m.spoil_json)),
                (2, m.at("hf/*.safetensors", m.spoil_safetensors)),
                (1, lambda rng, folder: m.spoil_folder(rng, folder / "hf")),
            ]
        ),
        (f.import_hf,),
    ),
    Boundary(
        "model of subwords",
        ("shared/interop/hf_tokenizer.py",),
        f.made_subwords,
        f.spoil_subwords,
        (f.export_hf,),
    ),
    Boundary(
        "token model folder",
        (
            "shared/interop/token_models.py",
            "shared/interop/embedding.py",
            "trainer/interchange/byteify.py",
            "trainer/commands/byteify.py",
        ),
        f.made_token_model,
        m.one_of(
            [
                (3, m.at("token-model/*.json", m.spoil_json)),
                (2, m.at("token-model/*.safetensors", m.spoil_safetensors)),
                (1, lambda rng, folder: m.spoil_folder(rng, folder / "token-model")),
            ]
        ),
        (f.byteify,),
    ),
    Boundary(
        "checkpoint",
        (
            "trainer/provenance/checkpoint_folders.py",
            "trainer/checkpoints/index.py",
            "trainer/checkpoints/storage.py",
            "trainer/checkpoints/state.py",
            "trainer/provenance/origin.py",
            "trainer/checkpoints/initial_weights.py",
        ),
        r.made_checkpoint,
        r.spoil_checkpoint,
        (r.evaluate_checkpoint, r.start_from),
    ),
    Boundary(
        "run history",
        ("trainer/metrics/files.py", "trainer/metrics/history.py"),
        r.made_run,
        m.one_of(
            [
                (2, m.at("run/*.jsonl", m.spoil_json_lines)),
                (2, m.at("run/*.json", m.spoil_json)),
                (1, lambda rng, folder: m.spoil_folder(rng, folder / "run")),
            ]
        ),
        (r.report,),
    ),
    Boundary(
        "recipe",
        ("trainer/settings/recipe.py",),
        r.made_recipe,
        r.spoil_recipe,
        (r.plan, r.plan_with_override),
    ),
    Boundary(
        "message file",
        ("trainer/generation/chat.py",),
        f.made_messages,
        m.at("chat.json", m.spoil_json),
        (f.chat,),
    ),
    Boundary(
        "request of a client",
        ("trainer/serving/requests.py",),
        f.made_requests,
        m.one_of([(4, m.at("*.json", m.spoil_json)), (1, m.at("*.json", m.spoil_bytes))]),
        (f.read_requests,),
    ),
    Boundary(
        "task file",
        ("trainer/evaluation/tasks/records.py",),
        f.made_tasks,
        m.at("task.jsonl", m.spoil_json_lines),
        (f.tasks,),
    ),
    Boundary(
        "patching file",
        ("pipeline/calibration/patching_file.py",),
        f.made_calibration,
        m.at("patching.json", m.spoil_json),
        (f.cut_with_patching,),
    ),
    Boundary(
        "table of patch sizes",
        ("shared/patching/sizes.py",),
        f.made_sizes,
        m.at("sizes.json", m.spoil_json),
        (f.plan_by_phases,),
    ),
    Boundary(
        "run folder of preprocess",
        (
            "pipeline/run/run_folder.py",
            "pipeline/splits/run_file.py",
            "pipeline/splits/marker.py",
            "pipeline/splits/place.py",
            "pipeline/splits/selection.py",
            "pipeline/run/progress.py",
            "pipeline/run/report.py",
            "pipeline/files.py",
            "pipeline/executors/ray.py",
        ),
        i.made_pipeline_run,
        m.one_of(
            [
                (3, m.at("d/*.json", m.spoil_json)),
                (3, m.at("d/splits/**/*.json", m.spoil_json)),
                (2, m.at("d/files-*.arrow", d.spoil_arrow)),
                (2, lambda rng, folder: m.spoil_folder(rng, folder / "d")),
            ]
        ),
        (i.go_on, i.status),
    ),
    Boundary(
        "jsonl input",
        ("pipeline/read/formats/jsonl.py", "pipeline/read/storage.py"),
        i.corpus("a.jsonl", i.jsonl),
        i.spoil_input(m.spoil_json_lines),
        (i.preprocess_input, i.preprocess_with_meta),
    ),
    Boundary(
        "parquet input",
        ("pipeline/read/formats/parquet.py",),
        i.corpus("a.parquet", i.parquet),
        i.spoil_input(d.spoil_parquet),
        (i.preprocess_input, i.preprocess_with_meta),
    ),
    Boundary(
        "arrow input",
        ("pipeline/read/formats/arrow_ipc.py",),
        i.corpus("a.arrow", i.arrow),
        i.spoil_input(d.spoil_arrow),
        (i.preprocess_input, i.preprocess_with_meta),
    ),
    Boundary(
        "tar input",
        ("pipeline/read/formats/webdataset.py",),
        i.corpus("a.tar", i.tar),
        i.spoil_input(d.spoil_tar),
        (i.preprocess_plain,),
    ),
    Boundary(
        "json input",
        ("pipeline/read/content.py",),
        i.corpus("a.json", i.json_array),
        i.spoil_input(m.spoil_json),
        (i.preprocess_input, i.preprocess_with_meta),
    ),
    Boundary(
        "folder of save_to_disk",
        ("pipeline/inputs/foreign_folders.py",),
        i.made_saved_to_disk,
        m.one_of(
            [
                (2, m.at("in/state.json", m.spoil_json)),
                (1, i.spoil_corpus),
            ]
        ),
        (i.preprocess_input,),
    ),
    Boundary(
        "parquet export",
        ("pipeline/rewriting/parquet.py",),
        d.made_export,
        m.one_of([(2, m.at("p/*.parquet", d.spoil_parquet)), (1, m.at("p/*.json", m.spoil_json))]),
        (d.convert_back,),
    ),
    Boundary(
        "metadata of documents",
        ("pipeline/calibration/parallel_text.py",),
        d.made_parallel,
        d.fitted(m.at("d/*.arrow", d.spoil_meta)),
        (d.calibrate_parallel,),
    ),
    Boundary(
        "tokenizer folder",
        ("shared/bpe/folder.py", "shared/bpe/vocabulary.py", "pipeline/rewriting/tokenizer.py"),
        d.made_tokenizer,
        d.fit_tokenizer,
        (d.cut_with_tokenizer,),
    ),
    Boundary(
        "tokenizer of another model",
        ("shared/bpe/imported.py", "shared/bpe/encoder.py"),
        f.made_foreign_tokenizers,
        m.at("*/tokenizer.json", m.spoil_json),
        (f.import_tokenizers,),
    ),
    Boundary(
        "teacher in a folder of transformers",
        ("shared/interop/token_teacher.py", "trainer/data/teacher.py", "trainer/planning/teacher.py"),
        f.made_teacher,
        m.one_of([(3, m.at("teacher/*.json", m.spoil_json)), (2, m.at("teacher/*.safetensors", m.spoil_safetensors))]),
        (f.dry_run_targets, f.plan_with_teacher, f.read_teacher),
    ),
    Boundary(
        "finished count",
        ("pipeline/counting/made_by.py",),
        d.made_counts,
        m.one_of([(3, m.at("m/counted.json", m.spoil_json)), (1, m.at("m/config.json", m.spoil_json))]),
        (d.count_again,),
    ),
    Boundary(
        "unfinished count",
        ("pipeline/counting/count_split.py",),
        d.half_counted,
        m.at("m/counting/counts/*.json", m.spoil_json),
        (d.count_again,),
    ),
    Boundary(
        "folder of the reference",
        ("shared/interop/reference.py",),
        f.made_reference,
        m.one_of(
            [
                (3, m.at("hf/**/*.json", m.spoil_json)),
                (2, m.at("hf/**/*.pth", m.spoil_bytes)),
                (1, lambda rng, folder: m.spoil_folder(rng, folder / "hf")),
            ]
        ),
        (f.import_hf,),
    ),
    Boundary(
        "record of a comparison",
        (
            "trainer/provenance/json_records.py",
            "trainer/experiments/folder.py",
            "trainer/experiments/scoring.py",
            "trainer/experiments/page/patched_text.py",
        ),
        r.made_experiment,
        m.at("lab/*.json", m.spoil_json),
        (r.report_experiment,),
    ),
    Boundary(
        "systems and grids",
        ("trainer/experiments/systems.py", "trainer/experiments/scaling/grid.py"),
        r.made_systems,
        m.at("*.toml", r.spoil_toml),
        (r.load_systems,),
    ),
    Boundary(
        "wet input",
        ("pipeline/read/formats/wet.py",),
        i.corpus("a.wet", i.wet),
        i.spoil_input(m.spoil_bytes),
        (i.preprocess_plain,),
    ),
    Boundary(
        "compressed input",
        ("pipeline/read/streams.py", "pipeline/read/frames.py"),
        i.corpus("a.jsonl.zst", lambda: zstandard.compress(i.jsonl())),
        i.spoil_input(i.spoil_compressed),
        (i.preprocess_input,),
    ),
    Boundary(
        "gzip input",
        ("pipeline/read/streams.py",),
        i.corpus("a.jsonl.gz", lambda: gzip.compress(i.jsonl(), mtime=0)),
        i.spoil_input(m.spoil_bytes),
        (i.preprocess_input,),
    ),
)
