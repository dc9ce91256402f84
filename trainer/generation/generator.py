"""A model folder, ready to write: prompts in, bytes out as they come.

Each byte costs what it adds: local models and entropy model run once a byte, the global model once a patch. With drafts
the local models run ahead and the rest checks several bytes at once; what is written stays the same.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from shared.counts.files import load_counts
from shared.counts.table import CountModel
from shared.errors import ConfigError
from shared.incremental import LONGEST_ADVANCE, DecodingState
from shared.io.files.path_kinds import model_folder_at
from shared.layers.weight_formats import WeightFormat, convert_weights
from shared.model_folder.files import load_entropy_model, load_model
from shared.model_folder.identity import ENTROPY_MODEL_FOLDER
from shared.models.blt import Blt
from shared.models.entropy_model import EntropyModel
from shared.models.hnet import HNet
from shared.text.chat import Turn, prompt_tokens
from trainer.generation.batch import Batch, Prompt
from trainer.generation.chat import end_of_turn
from trainer.generation.piece import Ending, Piece, Statistics
from trainer.generation.row import Row
from trainer.generation.settings import GenerateSettings
from trainer.provenance.identity import model_identity
from trainer.provenance.thresholds import one_threshold


class Generator:
    """A model folder, opened for writing. ``statistics`` and ``ended`` are those of the last call."""

    def __init__(
        self,
        folder: str | Path,
        device: torch.device | str = "cpu",
        threads: int | None = None,
        weights: WeightFormat = "float32",
    ) -> None:
        """A model folder, or the finished run that it belongs to.

        Args:
            threads: of the processor, as many as the training run had by default: sums depend on it in the last bits.
            weights: format of the model's matrices. The entropy model keeps its own, which its dataset records (law 2).

        Raises IdentityError or ModelFileError when the folder is not whole or its parts do not belong together, and
        ConfigError for weights of which the processor has no products.
        """
        folder = model_folder_at(Path(folder))
        self.folder = folder
        self.identity = model_identity(folder)
        torch.set_num_threads(threads or self.identity.numerics.threads)
        self.device = torch.device(device)
        # Between products of a smaller format activations are fp32, whatever the model was trained with.
        dtype = self.identity.numerics.dtype if weights == "float32" else "float32"
        model = load_model(folder, self.device, dtype)
        if not isinstance(model, Blt | HNet | EntropyModel):
            raise ConfigError(
                f"{folder} has a model of kind {model.settings.kind!r}: only entropy models, byte latent "
                "transformers and H-Nets generate"
            )
        self.model = convert_weights(model, weights)
        self.dtype = dtype
        self.weights: str = dtype if weights == "float32" else weights
        """The format of the model's matrices."""
        self.entropy_model = self._load_entropy_model() if isinstance(model, Blt) else None
        self.statistics = Statistics()
        self.ended: list[Ending | None] = []
        """Why each row ended; None for one that goes on."""

    def _load_entropy_model(self) -> EntropyModel | CountModel | None:
        """The entropy model, of a network in the dtype that the dataset was scored in (law 2)."""
        entropy_model = self.identity.entropy_model
        if not self.identity.patching.needs_entropy:
            return None
        assert entropy_model is not None, "a rule on entropy has an entropy model"
        folder, sha256 = self.folder / ENTROPY_MODEL_FOLDER, entropy_model.sha256
        if entropy_model.numerics is None:
            return load_counts(folder, sha256)
        return load_entropy_model(folder, sha256, self.device, entropy_model.dtype)

    def write(self, prompt: bytes, settings: GenerateSettings) -> Iterator[Piece]:
        """The prompt's own bytes (``Piece.from_prompt``), then at most ``settings.length`` more.

        Ends earlier where the model ends the document.
        """
        for _, piece in self.write_batch([prompt], settings):
            yield piece

    def texts(self, prompts: Sequence[bytes], settings: GenerateSettings) -> list[bytes]:
        """What is written after each prompt, whole."""
        texts = [bytearray() for _ in prompts]
        for row, piece in self.write_batch(prompts, settings):
            if not piece.from_prompt:
                texts[row] += piece.byte
        return list(map(bytes, texts))

    def write_batch(
        self, prompts: Sequence[bytes | Sequence[Turn]], settings: GenerateSettings
    ) -> Iterator[tuple[int, Piece]]:
        """The same for several prompts at once: (row, piece), rows in turn; each row as if it were alone.

        A prompt that is a chat so far is answered: its row ends with the turn.
        """
        self.require_draft(settings)
        documents = [self.document(settings) for _ in prompts]
        rows = [self.row(prompt, settings) for prompt in prompts]
        batch = self.batch()
        self.statistics, self.ended = batch.statistics, [row.ended for row in rows]
        for number, (row, document) in enumerate(zip(rows, documents)):
            prompt = Prompt(row, document)
            while not prompt.done:
                for piece in prompt.advance():
                    yield number, piece
            if row.ended is None:
                batch.join(prompt)
        numbers = {row: number for number, row in enumerate(rows)}
        while batch.rows:
            for row, pieces in batch.step(settings.draft):
                self.ended[numbers[row]] = row.ended
                for piece in pieces:
                    yield numbers[row], piece

    def require_draft(self, settings: GenerateSettings) -> None:
        """Raise ConfigError for drafts that the model cannot make."""
        if settings.draft and isinstance(self.model, EntropyModel):
            raise ConfigError("draft: an entropy model has no global model to run ahead of")
        if settings.draft >= LONGEST_ADVANCE:
            raise ConfigError(f"draft: {settings.draft} is more than {LONGEST_ADVANCE - 1}")

    def batch(self) -> Batch:
        """No rows yet."""
        return Batch(DecodingState(self.model, self.identity.patching.for_subset(None), self.entropy_model, rows=0))

    def document(self, settings: GenerateSettings) -> DecodingState:
        """One row that has read nothing, cut by the threshold that ``settings`` choose.

        Raises ConfigError for a subset or a threshold that the model does not have.
        """
        rules = one_threshold(self.identity.patching, settings.subset, settings.theta)
        return DecodingState(self.model, rules, self.entropy_model)

    def row(self, prompt: bytes | Sequence[Turn], settings: GenerateSettings) -> Row:
        """A text to go on from, or a chat to answer.

        Raises ConfigError for a chat with a model that does not know its special ids.
        """
        if isinstance(prompt, bytes):
            return Row(prompt, settings)
        specials = self.model.settings.specials if isinstance(self.model, Blt) else ()
        end = end_of_turn(prompt, specials, self.folder)
        return Row(prompt_tokens(prompt, specials), settings, specials, end)
