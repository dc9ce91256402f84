"""A model folder, ready to write: prompts in, bytes out as they come.

Each byte costs what it adds: local models and entropy model run once a byte, the global model once a patch. With drafts
the local models run ahead and the rest checks several bytes at once; what is written stays the same.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from shared.counts.files import load_counts
from shared.counts.table import CountModel
from shared.errors import ConfigError
from shared.incremental import LONGEST_ADVANCE, DecodingState
from shared.io.files.path_kinds import model_folder_at
from shared.model_folder.files import load_entropy_model, load_model
from shared.model_folder.identity import ENTROPY_MODEL_FOLDER
from shared.models.blt import Blt
from shared.models.entropy_model import EntropyModel
from shared.models.hnet import HNet
from shared.text.chat import Turn, prompt_tokens
from shared.vocabulary import EOS, is_special
from trainer.generation.chat import end_of_turn
from trainer.generation.piece import Ending, Piece, Statistics
from trainer.generation.row import Row
from trainer.generation.settings import GenerateSettings
from trainer.provenance.identity import model_identity
from trainer.provenance.thresholds import one_threshold


class Generator:
    """A model folder, opened for writing. ``statistics`` and ``ended`` are those of the last call."""

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu", threads: int | None = None) -> None:
        """A model folder, or the finished run that it belongs to.

        ``threads`` of the processor, as many as the training run had by default: sums depend on it in the last bits.

        Raises IdentityError or ModelFileError when the folder is not whole or its parts do not belong together.
        """
        folder = model_folder_at(Path(folder))
        self.folder = folder
        self.identity = model_identity(folder)
        torch.set_num_threads(threads or self.identity.numerics.threads)
        self.device = torch.device(device)
        model = load_model(folder, self.device, self.identity.numerics.dtype)
        if not isinstance(model, Blt | HNet | EntropyModel):
            raise ConfigError(
                f"{folder} has a model of kind {model.settings.kind!r}: only entropy models, byte latent "
                "transformers and H-Nets generate"
            )
        self.model = model
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
        rules = one_threshold(self.identity.patching, settings.subset, settings.theta)
        if settings.draft and isinstance(self.model, EntropyModel):
            raise ConfigError("draft: an entropy model has no global model to run ahead of")
        if settings.draft >= LONGEST_ADVANCE:
            raise ConfigError(f"draft: {settings.draft} is more than {LONGEST_ADVANCE - 1}")
        rows = [self._row(prompt, settings) for prompt in prompts]
        self.statistics, self.ended = Statistics(), [row.ended for row in rows]
        parts, newest = [], []
        for number, row in enumerate(rows):
            tokens = row.tokens
            part = DecodingState(self.model, rules, self.entropy_model)
            starts, entropies = part.read(tokens[:-1])
            for piece in row.show_prompt(starts.tolist(), None if entropies is None else entropies.tolist()):
                yield number, piece
            parts.append(part)
            newest.append(int(tokens[-1]))
        live = [number for number, row in enumerate(rows) if row.ended is None]
        if live:
            documents = DecodingState.joined([parts[number] for number in live])
            yield from self._go_on(rows, live, documents, [newest[number] for number in live], settings.draft)

    def _row(self, prompt: bytes | Sequence[Turn], settings: GenerateSettings) -> Row:
        """Raises ConfigError for a chat with a model that does not know its special ids."""
        if isinstance(prompt, bytes):
            return Row(prompt, settings)
        specials = self.model.settings.specials if isinstance(self.model, Blt) else ()
        end = end_of_turn(prompt, specials, self.folder)
        return Row(prompt_tokens(prompt, specials), settings, specials, end)

    def _go_on(
        self, rows: Sequence[Row], live: list[int], documents: DecodingState, newest: list[int], most: int
    ) -> Iterator[tuple[int, Piece]]:
        """Write until no row is live.

        Args:
            live: numbers of the rows of ``documents``, in order.
            newest: the last token of each of them, which is there but not read yet.
            most: bytes drafted at once.
        """
        before = documents.global_forwards
        while live:
            drafts = self._draft([rows[number] for number in live], documents, newest, most)
            longest = max(map(len, drafts))
            read = [[token, *draft, *[EOS] * (longest - len(draft))] for token, draft in zip(newest, drafts)]
            found = documents.advance(torch.tensor(read, device=self.device))
            logits = found.logits.cpu().numpy()
            newest, kept = [], []
            for place, number in enumerate(live):
                row, draft, taken = rows[number], drafts[place], 0
                while True:
                    token = row.choose(logits[place, taken])
                    assert token is not None, "only rows that go on are live"
                    starts = bool(found.starts[place, taken])
                    entropy = None if found.entropies is None else float(found.entropies[place, taken])
                    self.statistics.bytes += not is_special(token)
                    self.statistics.patches += starts
                    for piece in row.push(token, starts, entropy):
                        yield number, piece
                    if row.ended or taken == len(draft) or token != draft[taken]:
                        break
                    taken += 1
                newest.append(token)
                kept.append(1 + taken)
                self.ended[number] = row.ended
                self.statistics.drafted += len(draft)
                self.statistics.accepted += taken
            self.statistics.global_forwards = documents.global_forwards - before
            documents.accept(kept)
            going = [place for place, number in enumerate(live) if rows[number].ended is None]
            if len(going) < len(live):
                live, newest = [live[place] for place in going], [newest[place] for place in going]
                documents.select(going)

    def _draft(
        self, rows: Sequence[Row], documents: DecodingState, newest: Sequence[int], most: int
    ) -> list[list[int]]:
        """For each row what the local models alone would write next: at most ``most`` bytes."""
        # The last byte of a row needs no draft: checking those before it yields it.
        count = min(most, max(row.left for row in rows) - 1)
        drafts: list[list[int]] = [[] for _ in rows]

        def choose(logits: Tensor) -> Tensor:
            chosen = [row.choose(scores, draft) for row, draft, scores in zip(rows, drafts, logits.cpu().numpy())]
            for draft, token in zip(drafts, chosen):
                draft += [] if token is None else [token]
            # A row that would have ended reads on, since the others do; nothing comes of it.
            return torch.tensor([[EOS if token is None else token] for token in chosen], device=self.device)

        if count > 0:
            documents.draft(torch.tensor(newest, device=self.device)[:, None], choose, count)
        return drafts
