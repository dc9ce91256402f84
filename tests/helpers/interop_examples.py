"""Model folders, and texts in many scripts, for the tests of exchange with others."""

import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from helpers.model_examples import blt, blt_settings, entropy_model, entropy_settings, pack
from shared.interop.described import Record
from shared.model_folder.files import save_model
from shared.model_folder.identity import model_sha256
from shared.model_settings import BltSettings, EntropyModelSettings
from shared.models.blt import Blt
from shared.models.entropy_model import EntropyModel, entropy
from shared.patching import PatchingSettings
from shared.patching.settings import LONGEST_PATCH
from shared.shards.manifest import EntropyModelIdentity, NumericsClass

WORDS = {
    "latin": "der Fluß überquert Straßen, größer als Öl; naïve Käse ändern sich",
    "cyrillic": "скоро наступит тёплое лето, объявил старый рыбак у реки",
    "greek": "η θάλασσα είναι ήρεμη σήμερα, γράφει ο παλιός ποιητής",
    "arabic": "البحر هادئ اليوم كما يقول الصياد القديم قرب النهر",
    "devanagari": "नदी के किनारे पुराना मछुआरा कहता है कि मौसम अच्छा है",
    "han": "今天 海面 很 平静 老 渔夫 在 河边 说道 天气 会 变好",
}


def script_text(script: str, length: int, seed: int) -> bytes:
    """So many bytes of shuffled words; the last character may be cut. Script "random" is any bytes."""
    if script == "random":
        return np.random.default_rng(seed).integers(0, 256, length, dtype=np.uint8).tobytes()
    draws, words = random.Random(seed), WORDS[script].split()
    return " ".join(draws.choices(words, k=length)).encode()[:length]


def unlike_fresh(model: nn.Module, seed: int) -> None:
    """Weights of unit gain, norms away from 1, biases from 0, so that forgetting one shows; entropies spread wide."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean, sigma = (1.0, 0.2) if parameter.ndim == 1 else (0.0, parameter.shape[-1] ** -0.5)
            if name.endswith("bias"):
                mean, sigma = 0.0, 0.5
            parameter.normal_(mean, sigma * (2 if name == "head.weight" else 1), generator=draws)


def random_settings(seed: int) -> tuple[BltSettings, EntropyModelSettings]:
    """One of the configurations that transformers can hold; the first few seeds between them cover every choice."""
    draws = random.Random(seed)
    queries, functions = 1 + seed % 4, 1 + seed % 3
    width = draws.choice((16, 32))
    heads = draws.choice((2, 4))

    def stack(width: int, layers: int) -> dict[str, object]:
        return {
            "width": width,
            "layers": layers,
            "heads": heads,
            "kv_heads": draws.choice((None, 1, heads // 2)),
            "feed_forward": draws.choice((None, 24, 40)),
            "rope_theta": draws.choice((10_000.0, 500_000.0)),
            "norm_eps": draws.choice((1e-5, 1e-6)),
        }

    layers = 1 + seed // 2 % 2
    model = blt_settings(
        ngrams={"sizes": draws.sample(range(2, 10), draws.randint(1, 6)), "rows": 211, "functions": functions},
        encoder=stack(width, layers),
        decoder=stack(width, draws.randint(1, 3)),
        window=draws.choice((5, 24, 64, 100, 512)),
        queries=queries,
        decoder_cross_all_layers=seed // 4 % 2 == 0,
        encoder_cross_all_layers=layers == 1 and draws.random() < 0.5,
        **{"global": stack(queries * width if seed % 3 else 48, 2)},
    )
    small = entropy_settings(**stack(32, 2) | {"window": draws.choice((33, 64, 100, 512))})
    return model, small


def models(settings: tuple[BltSettings, EntropyModelSettings], seed: int) -> tuple[Blt, EntropyModel]:
    """Both models, far from how training begins."""
    model, small = blt(settings[0]).eval(), entropy_model(settings[1]).eval()
    unlike_fresh(model, seed)
    unlike_fresh(small, seed + 1)
    return model, small


def entropies_of(small: EntropyModel, text: bytes) -> np.ndarray:
    """float32 [T] nats, of what follows each token of a text."""
    batch = pack([text])
    with torch.no_grad():
        found: np.ndarray = entropy(small(batch.ids, batch.documents)).numpy()
    return found


def rule_between(small: EntropyModel, texts: Iterable[bytes], max_length: int = LONGEST_PATCH) -> PatchingSettings:
    """A rule whose threshold lies between two entropies of texts, and not so near one that rounding decides."""
    found = np.concatenate([entropies_of(small, text) for text in texts])
    ordered = np.sort(found)[int(len(found) * 0.6) : int(len(found) * 0.9)]
    gap = int(np.diff(ordered).argmax())
    theta = float(ordered[gap : gap + 2].astype(np.float64).mean())
    return PatchingSettings(rule="entropy", theta=theta, max_length=max_length)


def written(folder: Path, model: Blt, small: EntropyModel, patching: PatchingSettings) -> Record:
    """Save both as a model folder; what it would be exported as."""
    save_model(small, small.settings, folder.with_name("entropy_model"))
    save_model(model, model.settings, folder, folder.with_name("entropy_model"))
    identity = EntropyModelIdentity(sha256=model_sha256(folder / "entropy_model"), numerics=unmeasured())
    record = {"model": model.settings, "entropy_model": small.settings, "patching": patching}
    return Record(**record, entropy_model_identity=identity)


def unmeasured() -> NumericsClass:
    """What a dataset records that nobody scored."""
    common = {"device": "cpu", "dtype": "float32", "torch": torch.__version__, "attention": "banded", "probe": "x"}
    return NumericsClass(**common, stream_length=256, threads=1)  # type: ignore[arg-type]
