"""H-Net of one stage (arXiv 2507.07955): a router finds in the encoder's states where patches end, a global transformer
reads the last state of each, and a decoder what it makes of them.

Shapes: B rows, n new ids of each, P patches that end among them, R rows that have any, C the most of one row, D local
width, M ids that n-grams reach.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.interop.custom_code.causal_lm import PatchworkConfig, PatchworkForCausalLM
from shared.interop.custom_code.layers import KeyValues, RMSNorm, Stack, Step
from shared.interop.custom_code.ngrams import NO_TABLES, following, ngrams, reach, table
from shared.interop.custom_code.patches import PatchCache, by_row, last_ended, last_real, through_patches


class PatchworkHnetConfig(PatchworkConfig):
    """The record of what the model is, and what transformers asks for."""

    model_type = "patchwork_hnet"


class Credit:
    """Where the patches of one text end while it grows: where the router wants it and there is credit for a patch.

    Credit is counted in units of which a patch costs ``credit_bytes``; each id earns one.
    """

    def __init__(self, settings: dict) -> None:
        self.price, self.longest = settings["credit_bytes"], settings["max_length"]
        self.most = self.held = settings["credit"] * self.price
        self.length = -1
        """Ids of the open patch; below 0 before a text begins."""

    def ends(self, wanted: bool) -> bool:
        """Whether a patch ends with the next id of the text. The first one is a patch."""
        if self.length < 0:
            self.length = 0
            return True
        self.length += 1
        self.held = min(self.held + 1, self.most)
        paid = wanted and self.held >= self.price
        self.held -= self.price * paid
        found = paid or self.length == self.longest
        if found:
            self.length = 0
        return found


class Router(nn.Module):
    """How unlike the states of two neighbours are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)


class HnetModel(nn.Module):
    """All parts."""

    def __init__(self, settings: dict) -> None:
        super().__init__()
        width, latent = settings["encoder"]["width"], settings["global"]
        self.ngram_embedding = table(settings.get("ngrams", NO_TABLES), width)
        self.embed_tokens = nn.Embedding(settings["vocabulary"], width)
        self.encoder = Stack(settings["encoder"])
        self.encoder_norm = RMSNorm(width, settings["encoder"]["norm_eps"])
        self.router = Router(width)
        self.input_projection = nn.Linear(width, latent["width"], bias=False)
        self.global_transformer = Stack(latent)
        self.global_norm = RMSNorm(latent["width"], latent["norm_eps"])
        self.patch_projection = nn.Linear(latent["width"], width, bias=False)
        self.residual = nn.Linear(width, width, bias=False)
        self.decoder = Stack(settings["decoder"])
        self.norm = RMSNorm(width, settings["decoder"]["norm_eps"])


class HnetState:
    """What is kept of B rows."""

    def __init__(self, rows: int, settings: dict, device: torch.device, dtype: torch.dtype) -> None:
        width = settings["encoder"]["width"]
        self.encoder, self.decoder = (KeyValues(settings[name]["layers"], rows) for name in ("encoder", "decoder"))
        self.global_ = PatchCache(settings["global"], rows)
        self.credits = [Credit(settings) for _ in range(rows)]
        self.tail = torch.zeros(rows, reach(settings.get("ngrams", NO_TABLES)), dtype=torch.int64, device=device)
        """int64 [B, M], the last ids, which n-grams reach."""
        self.key = torch.zeros(rows, width, dtype=dtype, device=device)
        """[B, D], the router's key of the last id."""
        self.read = torch.zeros(rows, width, device=device)
        """fp32 [B, D], the moving average after the last patch."""
        self.ids, self.ended = 0, 0
        """In all rows: ids, and patches that have ended."""
        self.wanted = torch.zeros((), device=device)
        """Sum of p over all ids."""


class PatchworkHnetForCausalLM(PatchworkForCausalLM):
    """Each byte costs what it adds: encoder, router and decoder run once a byte, the global one once a patch."""

    config_class = PatchworkHnetConfig

    def __init__(self, config: PatchworkHnetConfig) -> None:
        super().__init__(config)
        self.settings = config.patchwork["model"]
        self.model = HnetModel(self.settings)
        self.lm_head = nn.Linear(self.settings["encoder"]["width"], config.vocab_size, bias=False)
        self.post_init()

    def new_state(self, rows: int) -> HnetState:
        return HnetState(rows, self.settings, self.lm_head.weight.device, self.lm_head.weight.dtype)

    def states(self, ids: Tensor, step: Step, state: HnetState) -> Tensor:
        model, settings, window = self.model, self.settings, self.settings["window"]
        x = model.embed_tokens(ids)
        if model.ngram_embedding is not None:
            x = x + ngrams(state.tail, ids, settings["ngrams"], model.ngram_embedding.weight)
        state.tail = following(state.tail, ids, step.sizes)
        x = model.encoder_norm(model.encoder(x, step, window, state.encoder))
        p, ends = self.routed(x, step, state)
        read = self.read_patches(x, p, ends, step, state)
        chosen = torch.where(torch.from_numpy(ends).to(p.device), p, 1 - p)
        # A factor of 1, through which the router learns: its gradient is that of how sure it was.
        read = read * (1 + chosen - chosen.detach())[..., None]
        return model.decoder(model.residual(x) + read.to(x.dtype), step, window, state.decoder)

    def routed(self, x: Tensor, step: Step, state: HnetState) -> tuple[Tensor, np.ndarray]:
        """States [B, n, D] -> p fp32 [B, n], and bool [B, n] whether a patch ends with each id."""
        router = self.model.router
        keys = router.key(x)
        before = torch.cat([state.key[:, None].to(keys.dtype), keys[:, :-1]], 1)
        unlike = (1 - F.cosine_similarity(router.query(x).float(), before.float(), -1)) / 2
        p = torch.where(step.positions == 0, 1.0, unlike)
        wanted, ends = (p >= 0.5).tolist(), np.zeros(p.shape, bool)
        for row, size in enumerate(step.sizes):
            for column in range(size):
                ends[row, column] = state.credits[row].ends(wanted[row][column])
        state.key = last_real(keys, before[:, 0], step.sizes)
        real = torch.arange(p.shape[1], device=p.device) < torch.tensor(step.sizes, device=p.device)[:, None]
        state.ids, state.ended = state.ids + sum(step.sizes), state.ended + int(ends.sum())
        state.wanted = state.wanted + (p * real).sum()
        return p, ends

    def read_patches(self, x: Tensor, p: Tensor, ends: np.ndarray, step: Step, state: HnetState) -> Tensor:
        """What each id reads, fp32 [B, n, D]: the moving average after the last patch that has ended."""
        table, total = state.read, ends.sum(1)
        if total.any():
            model, stack, last = self.model, self.settings["global"], torch.from_numpy(ends).to(x.device)
            layers, inputs = model.global_transformer.layers, model.input_projection(x[last])
            y = through_patches(layers, stack, inputs, total, state.global_)
            vectors = model.patch_projection(model.global_norm(y)).float()
            rows = torch.from_numpy(np.flatnonzero(total)).to(x.device)
            table = torch.cat([table, smoothed(p[last], vectors, total, state.read[rows])])
        found = table[torch.from_numpy(last_ended(ends)).to(x.device)]
        state.read = last_real(found, state.read, step.sizes)
        return found

    def added_loss(self, state: HnetState) -> Tensor:
        """The weighted ratio loss, which holds the mean length of patches near ``target`` (section 2.2)."""
        target, ended, wanted = self.settings["target"], state.ended / state.ids, state.wanted / state.ids
        ratio = target / (target - 1) * ((target - 1) * ended * wanted + (1 - ended) * (1 - wanted))
        return self.settings["ratio_weight"] * ratio


def smoothed(shares: Tensor, vectors: Tensor, total: np.ndarray, before: Tensor) -> Tensor:
    """y = share * vector + (1 - share) * the y before, in each row.

    Of patches: shares fp32 [P], vectors fp32 [P, D], ``total`` int64 [B] of each row; fp32 [R, D] before them, of the
    rows that have any -> fp32 [P, D].
    """
    y, real = by_row(shares[:, None] * vectors, total)
    kept = by_row(1 - shares, total)[0]
    y, kept = torch.cat([before[:, None], y], 1), F.pad(kept, (1, 0))
    reached = 1  # each entry is the sum of so many terms, and what it keeps of the one before them
    while reached < y.shape[1]:
        y = y + kept[..., None] * F.pad(y[:, :-reached], (0, 0, reached, 0))
        kept = kept * F.pad(kept[:, :-reached], (reached, 0))
        reached *= 2
    return y[:, 1:][real]
