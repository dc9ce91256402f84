"""A model of tokens that says how probable each next token of a document is.

A document is read in windows of the teacher's context, so that memory is bounded however long it is. A window begins
half a context before the tokens that it is asked about: every token is predicted from half a context at least, but for
those near the beginning of the document. Windows lie side by side on one axis, as documents of a pack do.

Shapes: V ids of the teacher, C tokens of its context, n tokens that follow one another.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from shared.bpe.encoder import SubwordEncoder, WholeTokens
from shared.bpe.folder import check_tokenizer, load_making
from shared.distillation.targets_folder import TeacherIdentity
from shared.errors import ModelFileError
from shared.io.files.path_kinds import model_folder_at
from shared.layers.batch import segments
from shared.layers.blocks import DTYPES, Precision, cast_model
from shared.model_folder.files import load_model
from shared.model_folder.identity import TOKENIZER_FOLDER, load_settings, model_sha256
from shared.model_settings import FlatSettings
from shared.models.flops import forward_flops
from shared.models.transformer import FlatTransformer
from shared.models.workload import useful_workload
from shared.shards.manifest import NumericsClass
from shared.vocabulary import BOE, BOS, EOS, OFFSET

CONTEXT = 1024
"""C where nothing else is said; two windows of a model that has a larger one, so that each token has all of its own."""
TOGETHER = 4096
"""Tokens of windows that are computed at once, where they have few ids: wide products are faster."""
MOST_LOGITS = 1 << 25
"""Logits that are computed at once, but for those of one window: 128 MiB."""


@dataclass(frozen=True)
class Predictions:
    """What a teacher says of tokens that follow one another in a text, or in several."""

    logits: Tensor
    """fp32 [n, V], before each of the tokens."""
    ids: np.ndarray
    """int64 [n], the tokens."""
    flops: float
    """That the teacher has spent on them."""


class Teacher(Protocol):
    """A model of tokens with its tokenizer."""

    identity: TeacherIdentity
    numerics: NumericsClass
    """Of its computation on this machine."""
    device: torch.device

    @property
    def tokens(self) -> Sequence[bytes | None]:
        """[V], the bytes of each id; None for special ids."""
        ...

    @property
    def special_ids(self) -> Sequence[int | None]:
        """The student's id for each special id, in order; None for those that a student does not have."""
        ...

    def predictions(self, documents: Iterable[Iterable[bytes]]) -> Iterator[Predictions]:
        """Of all tokens of documents, in order: those of the text, and the one that ends it.

        A document is its text in parts. Memory is that of some windows, and of a part.
        """
        ...

    def window_lengths(self, documents: Iterable[Iterable[bytes]]) -> Iterator[int]:
        """Tokens of each window that `predictions` would compute; nothing is computed."""
        ...

    def flops(self, lengths: Sequence[int]) -> float:
        """Of windows of so many tokens."""
        ...


@dataclass(frozen=True)
class Window:
    """Tokens of a document that are predicted together, each from those before it."""

    begins: bool
    """Whether it begins where the document does."""
    ids: np.ndarray
    """int64 [n], at most C."""
    known: int
    """The first so many have been predicted by the window before, from more."""


def windows(chunks: Iterable[np.ndarray], context: int) -> Iterator[Window]:
    """The windows of a document of at least one token, which comes in chunks (int64). ``context``: C, at least 2."""
    held, begins, known, step = np.zeros(0, np.int64), True, 0, context // 2
    for chunk in chunks:
        held = np.concatenate([held, chunk])
        while len(held) >= context:
            yield Window(begins, held[:context], known)
            held, begins, known = held[step:], False, context - step
    if len(held) > known:
        yield Window(begins, held, known)


@dataclass(frozen=True)
class Frame:
    """The ids that a model reads around a text."""

    begin: int
    """Before the first token of a document."""
    inside: int
    """Before the first token of a window that begins inside one."""
    end: int
    """Behind the last token of a document."""


class TokenTeacher:
    """A model of Llama's shape over the tokens of a tokenizer; its logits are fp32 in any precision."""

    def __init__(
        self,
        model: FlatTransformer,
        encoder: SubwordEncoder,
        frame: Frame,
        identity: TeacherIdentity,
        precision: Precision = "float32",
    ) -> None:
        settings = model.settings
        assert isinstance(settings, FlatSettings)
        self._settings, self._encoder, self._frame = settings, encoder, frame
        self._model = cast_model(model, DTYPES[precision]).requires_grad_(False)
        self._precision = precision
        self.device = model.embedding.weight.device
        self.identity = identity
        self.numerics = self._found_numerics()

    @cached_property
    def tokens(self) -> Sequence[bytes | None]:
        """[V], the bytes of each id; ids that the tokenizer does not have have none."""
        found = self._encoder.subwords.tokens[: self.identity.vocabulary]
        return [*found, *[None] * (self.identity.vocabulary - len(found))]

    @property
    def special_ids(self) -> Sequence[int | None]:
        """The end of a document is ours; of other special ids a student knows nothing."""
        none = (number for number, token in enumerate(self.tokens) if token is None)
        return [EOS if number == self._frame.end else None for number in none]

    def predictions(self, documents: Iterable[Iterable[bytes]]) -> Iterator[Predictions]:
        together = max(self.identity.context, min(TOGETHER, MOST_LOGITS // self.identity.vocabulary))
        held, size = list[Window](), 0
        for window in self._windows(documents):
            if held and size + len(window.ids) > together:
                yield self._computed(held)
                held, size = [], 0
            held.append(window)
            size += len(window.ids)
        if held:
            yield self._computed(held)

    def window_lengths(self, documents: Iterable[Iterable[bytes]]) -> Iterator[int]:
        return (len(window.ids) for window in self._windows(documents))

    def flops(self, lengths: Sequence[int]) -> float:
        return float(forward_flops(self._settings, useful_workload(self._settings, lengths)).total)

    def _windows(self, documents: Iterable[Iterable[bytes]]) -> Iterator[Window]:
        for document in documents:
            yield from windows(self._ids(document), self.identity.context)

    def _ids(self, document: Iterable[bytes]) -> Iterator[np.ndarray]:
        """int64, the tokens of a document as its text comes, and what ends it."""
        text = WholeTokens(self._encoder)
        for part in document:
            yield self._encoder.ids(text.add(part, False)).astype(np.int64)
        yield np.append(self._encoder.ids(text.add(b"", True)).astype(np.int64), self._frame.end)

    def _computed(self, held: Sequence[Window]) -> Predictions:
        """What the model says of the tokens of some windows that were not known before."""
        frame, lengths = self._frame, [len(window.ids) for window in held]
        before = [[frame.begin if window.begins else frame.inside] for window in held]
        inputs = [part for first, window in zip(before, held) for part in (first, window.ids[:-1])]
        asked = np.concatenate([np.arange(len(window.ids)) >= window.known for window in held])
        with torch.inference_mode():
            ids = torch.from_numpy(np.concatenate(inputs)).to(self.device)
            logits = self._model(ids, segments(lengths).to(self.device))
            found = logits[torch.from_numpy(asked).to(self.device)]
        return Predictions(found, np.concatenate([window.ids for window in held])[asked], self.flops(lengths))

    def _found_numerics(self) -> NumericsClass:
        on_cuda = self.device.type == "cuda"
        hardware = torch.cuda.get_device_name() if on_cuda else torch.backends.cpu.get_cpu_capability()
        size = min(self.identity.context, 256)
        ids = np.random.default_rng(0).integers(OFFSET, self._settings.vocabulary, size)
        logits = self._computed([Window(True, ids, 0)]).logits
        return NumericsClass(
            device=f"{self.device.type} {hardware}",
            dtype=self._precision,
            torch=torch.__version__,
            attention=("varlen" if self._precision == "bfloat16" else "banded") if on_cuda else "tiled",
            stream_length=self.identity.context,
            threads=torch.get_num_threads(),
            probe=sha256(logits.cpu().numpy().astype("<f4").tobytes()).hexdigest(),
        )


class FlatTeacher(TokenTeacher):
    """A flat model over byte-pair tokens, from its model folder.

    Where a window begins inside a document it begins with BOE, as a slice does that a pack has cut.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Path | None = None,
        context: int | None = None,
        device: str = "cpu",
        precision: Precision = "float32",
    ) -> None:
        """Args:
            tokenizer: its folder; None: that of the model.
            context: C; None: CONTEXT, or twice the window of the model where that is more.
            device: "cpu" or "cuda".
            precision: of its weights and products.

        Raises ModelFileError, DatasetError for a tokenizer that cannot be read, IdentityError for that of another
        model.
        """
        folder = model_folder_at(folder)
        settings = load_settings(folder)
        if not isinstance(settings, FlatSettings) or settings.reads != "tokens":
            raise ModelFileError(
                f"{folder} is a model of kind {settings.kind!r} that reads {settings.reads}; a teacher reads tokens: "
                "kind 'flat' with the vocabulary of a tokenizer"
            )
        own = folder / TOKENIZER_FOLDER
        making = load_making(tokenizer or own)
        if tokenizer is not None and own.is_dir():
            check_tokenizer(tokenizer, load_making(own).identity)
        if making.vocabulary != settings.vocabulary:
            raise ModelFileError(
                f"{folder} has {settings.vocabulary} ids, the tokenizer {tokenizer or own} has {making.vocabulary}"
            )
        model = load_model(folder, torch.device(device), precision)
        assert isinstance(model, FlatTransformer)
        identity = TeacherIdentity(
            sha256=model_sha256(folder),
            vocabulary=settings.vocabulary,
            tokenizer=making.sha256,
            context=context or max(CONTEXT, 2 * (settings.window or 0)),
        )
        super().__init__(model, SubwordEncoder(tokenizer or own), Frame(BOS, BOE, EOS), identity, precision)
