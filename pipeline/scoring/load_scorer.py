"""An entropy model from its folder, ready to score on this machine."""

import socket
from pathlib import Path

from pipeline.settings import PipelineError, ScoringSettings
from shared.inputs import DocumentScorer
from shared.io.display.log import LOG
from shared.model_folder.identity import PackedModel
from shared.shards.manifest import NumericsClass


def load_scorer(
    entropy_model: Path | PackedModel | None, scoring: ScoringSettings | None
) -> tuple[DocumentScorer, NumericsClass | None]:
    """The entropy model ready to score, and the numerics class that a probe finds it in (law 5).

    ``scoring`` is None for a model that counts, which has no such class and needs no torch.
    """
    if scoring is None:
        from shared.counts.files import load_counts
        from shared.counts.scorer import CountScorer

        assert entropy_model is not None, "scoring is asked for together with a model"
        return CountScorer(load_counts(entropy_model)), None
    import torch

    from shared.model_folder.files import load_entropy_model
    from shared.models.scoring import Scorer, probe

    assert entropy_model is not None, "scoring is asked for together with a model"
    torch.set_num_threads(scoring.threads)
    device = "cuda" if scoring.device == "auto" and torch.cuda.is_available() else scoring.device.replace("auto", "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise PipelineError(f"--device cuda: on {socket.gethostname()} PyTorch finds no GPU; use --device cpu")
    scorer = Scorer(load_entropy_model(entropy_model, None), scoring.stream_length, scoring.dtype, device)
    on_accelerator = "varlen" if scoring.dtype == "bfloat16" else "banded"
    kernel = on_accelerator if device == "cuda" else "tiled"
    hardware = torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()
    LOG.debug("scoring on %s (%s), attention %s, %d threads", device, hardware, kernel, scoring.threads)
    numerics = NumericsClass(
        device=f"{device} {hardware}",
        torch=torch.__version__,
        attention=kernel,
        **scoring.model_dump(include={"dtype", "stream_length", "threads"}),
        probe=probe(scorer),
    )
    return scorer, numerics
