"""Writing text byte by byte, from a model folder alone.

Each byte recomputes the entropies and the logits of the whole prefix: the plain definition that any faster way must
equal (law 2).
"""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from shared.batch import Patches, segments
from shared.blt import Blt
from shared.config import ConfigError
from shared.entropy_model import EntropyModel
from shared.identity import IdentityError
from shared.model_files import load_model
from shared.model_identity import PATCHER_FOLDER, model_sha256
from shared.patching import PatchingSettings, PatchStream
from shared.scoring import Scorer
from shared.shards.manifest import NumericsClass
from shared.vocabulary import BOS, EOS, byte_tokens, token_bytes
from trainer.generation.sampling import SamplingSettings, Uniforms, choose
from trainer.identity import IDENTITY_NAME, ModelIdentity, load_identity


@dataclass(frozen=True)
class GenerateSettings:
    """How to go on from a prompt."""

    length: int
    """Bytes to write at most."""
    temperature: float = 0.8
    top_k: int | None = None
    seed: int = 0
    subset: str | None = None
    """Whose threshold places the patches, where subsets have their own."""
    theta: float | None = None
    """A threshold instead of the recorded ones, in nats."""


@dataclass(frozen=True)
class Piece:
    """One byte of text, and whether a patch begins with it."""

    byte: bytes
    starts: bool


SHORTEST_STREAM = 256


class PrefixScorer:
    """Entropies of a growing document, in the numerics class that the dataset records.

    All but the length of the stream: the recorded one is made for throughput, and would score thousands of empty places
    for each byte. The shortest one that holds the prefix is used: the bits were equal in every measurement, and in fp32
    law 2 bounds what may differ.
    """

    def __init__(self, model: EntropyModel, numerics: NumericsClass, device: torch.device) -> None:
        self._model, self._numerics, self._device = model, numerics, device
        self._scorer: Scorer | None = None

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        """float32 [n + 1] nats after each of the tokens [BOS, b1..bn]."""
        longest = self._numerics.stream_length
        if self._scorer is None or self._scorer.stream_length < min(len(tokens), longest):
            length = SHORTEST_STREAM
            while length < len(tokens):
                length *= 2
            self._scorer = Scorer(self._model, min(length, longest), self._numerics.dtype, self._device)
        # The closing EOS is not an input and decides nothing.
        (entropies,) = self._scorer.score([np.append(tokens, np.int16(EOS))])
        return entropies


class Boundaries:
    """The patches of a growing document, as the pipeline would have stored them."""

    def __init__(self, patching: PatchingSettings, scorer: PrefixScorer | None) -> None:
        self._stream = PatchStream(patching)
        self._scorer = scorer
        self.starts = [True]
        """One for each token, and one for the token that comes next."""

    def extend(self, tokens: np.ndarray) -> None:
        """Decide about all tokens that are new in ``tokens``, the whole document so far [BOS, b1..bn]."""
        entropies = None if self._scorer is None else self._scorer(tokens)
        for place in range(len(self.starts) - 1, len(tokens)):
            entropy = None if entropies is None else float(entropies[place])
            self.starts.append(self._stream.push(int(tokens[place]), entropy))

    def patches(self) -> Patches:
        """Patches of the tokens so far: each reads the last patch that is complete when its next token is predicted."""
        number = np.cumsum(self.starts) - 1
        return Patches(
            of_token=torch.from_numpy(number[:-1]),
            of_decoder=torch.from_numpy(number[1:] - 1),
            documents=segments([int(number[-2]) + 1]),
        )


class Generator:
    """A model folder, ready to write."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        """Raises IdentityError or ModelFileError when the folder is not whole or its parts do not belong together."""
        self.identity = load_identity(folder / IDENTITY_NAME, ModelIdentity)
        torch.set_num_threads(self.identity.numerics.threads)
        self.device = torch.device(device)
        self.model: nn.Module = load_model(folder, self.device, self.identity.numerics.dtype)
        self.scorer = self._load_scorer(folder / PATCHER_FOLDER) if isinstance(self.model, Blt) else None

    def _load_scorer(self, folder: Path) -> PrefixScorer | None:
        patcher = self.identity.patcher
        if not self.identity.patching.needs_entropy:
            return None
        assert patcher is not None, "a rule on entropy has an entropy model"
        found = model_sha256(folder)
        if found != patcher.sha256:
            raise IdentityError(f"{folder} has sha256 {found}, the model was trained with {patcher.sha256}")
        entropy_model = load_model(folder)
        assert isinstance(entropy_model, EntropyModel)
        return PrefixScorer(entropy_model, patcher.numerics, self.device)

    def write(self, prompt: bytes, settings: GenerateSettings) -> Iterator[Piece]:
        """The prompt's own bytes, then at most ``settings.length`` more, until the model ends the document."""
        patching = choose_patching(self.identity.patching, settings)
        boundaries = Boundaries(patching, self.scorer) if isinstance(self.model, Blt) else None
        sampling = SamplingSettings(temperature=settings.temperature, top_k=settings.top_k, seed=settings.seed)
        draws = Uniforms(settings.seed)
        tokens = np.concatenate([np.array([BOS], np.int16), byte_tokens(prompt)])
        shown = 1
        for written in range(settings.length + 1):
            if boundaries is not None:
                boundaries.extend(tokens)
            for place in range(shown, len(tokens)):
                yield Piece(token_bytes(tokens[place : place + 1]), boundaries is not None and boundaries.starts[place])
            shown = len(tokens)
            if len(tokens) == 1 + len(prompt) + settings.length:
                return
            token = choose(self._logits(tokens, boundaries).float().cpu(), sampling, draws[written])
            if token == EOS:
                return
            tokens = np.append(tokens, np.int16(token))

    @torch.inference_mode()
    def _logits(self, tokens: np.ndarray, boundaries: Boundaries | None) -> Tensor:
        """Logits [V] of the token after the prefix."""
        ids = torch.from_numpy(tokens.astype(np.int64)).to(self.device)
        document = segments([len(tokens)]).to(self.device)
        if boundaries is None:
            return self.model(ids, document)[-1]
        return self.model(ids, document, boundaries.patches().to(self.device))[-1]


def choose_patching(recorded: PatchingSettings, settings: GenerateSettings) -> PatchingSettings:
    """The recorded rule with the one threshold that this text is patched by.

    Raises ConfigError when subsets have thresholds of their own and none is chosen, or for one that is unknown.
    """
    if settings.theta is not None:
        if not recorded.needs_entropy:
            raise ConfigError(f"--theta: rule {recorded.rule!r} has no threshold")
        return PatchingSettings.model_validate(
            recorded.model_dump() | {"theta": settings.theta, "thetas": {}, "grid": False}
        )
    if recorded.thetas and settings.subset not in recorded.thetas:
        known = ", ".join(sorted(recorded.thetas))
        raise ConfigError(f"thresholds differ by subset: give --theta, or --subset with one of {known}")
    return recorded.for_subset(settings.subset)


def text_of(pieces: Iterator[Piece], show_patches: bool) -> Iterator[str]:
    """Pieces as text that never shows half a character; what is not UTF-8 becomes U+FFFD. | sets patches apart."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        mark = "|" if show_patches and piece.starts else ""
        yield mark + decoder.decode(piece.byte)
    yield decoder.decode(b"", final=True)
