"""What each system of an experiment writes on from one prompt. FOLDER/samples.json keeps it: pages need no model."""

from pathlib import Path

from shared.settings import Settings
from trainer.errors import USER_ERRORS
from trainer.experiments.results.results import Results
from trainer.provenance.json_records import PathInside, Value, keep

SAMPLES_NAME = "samples.json"
LENGTH, PROMPT = 200, 64
"""Bytes that are written, and bytes of the prompt at most."""
TEMPERATURE, SEED = 0.7, 0


class Sample(Settings):
    """What one model wrote."""

    system: str
    run: PathInside
    text: str
    """Prompt and what follows; a character stands for the byte of the same number (Latin-1)."""
    starts: tuple[int, ...] = ()
    """Places of bytes at which patches begin; none for models without patches."""
    refusal: str | None = None
    """Why nothing was written, in words."""

    @property
    def bytes(self) -> bytes:
        return self.text.encode("latin-1")


class Samples(Settings):
    """A prompt and what each system made of it."""

    prompt: str
    """As bytes (Latin-1)."""
    temperature: Value
    seed: int
    samples: tuple[Sample, ...]


def prompt_from(text: bytes) -> bytes:
    """The beginning of a text, up to its last space or newline within PROMPT bytes."""
    start = text[:PROMPT]
    end = max(start.rfind(b" "), start.rfind(b"\n"))
    return start[:end] if end > 0 else start


def write_samples(results: Results, folder: Path, prompt: bytes) -> None:
    """Let the first run of each system write on, and keep it. Raises OSError.

    A model that cannot write is kept with the reason.
    """
    runs = {run.system: run.folder for run in reversed(results.runs)}
    names = [system.name for system in results.systems if system.name in runs]
    samples = tuple(_sample(name, folder, runs[name], prompt) for name in names)
    made = Samples(prompt=prompt.decode("latin-1"), temperature=TEMPERATURE, seed=SEED, samples=samples)
    keep(made, folder / SAMPLES_NAME)


def _sample(system: str, folder: Path, run: Path, prompt: bytes) -> Sample:
    from trainer.generation.generator import Generator
    from trainer.generation.sampling import SamplingSettings
    from trainer.generation.settings import GenerateSettings

    settings = GenerateSettings(length=LENGTH, sampling=SamplingSettings(temperature=TEMPERATURE, seed=SEED))
    try:
        pieces = [piece for piece in Generator(folder / run / "model").write(prompt, settings) if piece.byte]
    except USER_ERRORS as error:
        # Paths of this machine say nothing to readers of the page.
        refusal = str(error).splitlines()[0].replace(f"{folder}/", "")
        return Sample(system=system, run=run, text="", refusal=refusal)
    text = b"".join(piece.byte for piece in pieces)
    starts = tuple(place for place, piece in enumerate(pieces) if piece.starts)
    return Sample(system=system, run=run, text=text.decode("latin-1"), starts=starts)
