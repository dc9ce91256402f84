"""MegaByte (arXiv 2305.07185): patches of S bytes, a global transformer over patches, a local one inside each.

Shapes: B rows, n new ids of each, P patches that end among them, S bytes a patch, E width of what a byte puts into its
patch and gets from the patch before, D local width, M ids that n-grams and patches reach.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from shared.interop.custom_code.causal_lm import PatchworkConfig, PatchworkForCausalLM
from shared.interop.custom_code.layers import KeyValues, RMSNorm, Stack, Step
from shared.interop.custom_code.ngrams import NO_TABLES, following, ngrams, reach, table
from shared.interop.custom_code.patches import PatchCache, last_ended, last_real, through_patches

START = 3
"""Stands for the id before the first byte of a patch in the local model; no text has it."""


class PatchworkMegabyteConfig(PatchworkConfig):
    """The record of what the model is, and what transformers asks for."""

    model_type = "patchwork_megabyte"


class MegabyteModel(nn.Module):
    """All parts."""

    def __init__(self, settings: dict) -> None:
        super().__init__()
        width, piece = settings["local"]["width"], settings["global"]["width"] // settings["patch"]
        self.ngram_embedding = table(settings.get("ngrams", NO_TABLES), width)
        self.patch_embedding = nn.Embedding(settings["vocabulary"], piece)
        self.global_transformer = Stack(settings["global"])
        self.projection = nn.Linear(piece, width, bias=False)
        self.embed_tokens = nn.Embedding(settings["vocabulary"], width)
        self.local = Stack(settings["local"])
        self.norm = RMSNorm(width, settings["local"]["norm_eps"])


class MegabyteState:
    """What is kept of B rows."""

    def __init__(self, rows: int, settings: dict, device: torch.device, dtype: torch.dtype) -> None:
        size, tables = settings["patch"], settings.get("ngrams", NO_TABLES)
        self.local = KeyValues(settings["local"]["layers"], rows)
        self.global_ = PatchCache(settings["global"], rows)
        reached = max(size - 1, reach(tables))
        self.tail = torch.zeros(rows, reached, dtype=torch.int64, device=device)
        """int64 [B, M], the last ids."""
        self.read = torch.zeros(rows, size, settings["global"]["width"] // size, dtype=dtype, device=device)
        """[B, S, E], the last whole patch after the global transformer."""


class PatchworkMegabyteForCausalLM(PatchworkForCausalLM):
    """Each byte costs what it adds: the local model runs once a byte, the global one once a patch.

    After <s>, a patch of its own, each S ids are one.
    """

    config_class = PatchworkMegabyteConfig

    def __init__(self, config: PatchworkMegabyteConfig) -> None:
        super().__init__(config)
        self.settings = config.patchwork["model"]
        self.model = MegabyteModel(self.settings)
        self.lm_head = nn.Linear(self.settings["local"]["width"], config.vocab_size, bias=False)
        self.post_init()

    def new_state(self, rows: int) -> MegabyteState:
        return MegabyteState(rows, self.settings, self.lm_head.weight.device, self.lm_head.weight.dtype)

    def states(self, ids: Tensor, step: Step, state: MegabyteState) -> Tensor:
        model, size, width = self.model, self.settings["patch"], self.settings["local"]["width"]
        # The id at place 0 ends a patch: from there S ids, of which it is the first, predict the next patch.
        place = step.positions % size
        pieces = self.read_patches(ids, place, step, state)
        embedded = model.embed_tokens(ids.masked_fill(place == 0, START))
        if model.ngram_embedding is not None:
            tables = self.settings["ngrams"]
            tail = state.tail[:, state.tail.shape[1] - reach(tables) :]
            embedded = embedded + ngrams(tail, ids, tables, model.ngram_embedding.weight)
        state.tail = following(state.tail, ids, step.sizes)
        # Rotary positions are relative, so that those of the text do for the places of a patch.
        step = replace(step, since=step.positions - place)
        return model.local(model.projection(pieces) + width**0.5 * embedded, step, size, state.local)

    def read_patches(self, ids: Tensor, place: Tensor, step: Step, state: MegabyteState) -> Tensor:
        """[B, n, E], what each id gets from the last whole patch; the global transformer reads those that end here."""
        model, size = self.model, self.settings["patch"]
        real = torch.arange(ids.shape[1], device=ids.device) < torch.tensor(step.sizes, device=ids.device)[:, None]
        ends, pieces = (place == 0) & real, state.read
        total = ends.sum(1).cpu().numpy()
        if total.any():
            before = state.tail[:, state.tail.shape[1] - size + 1 :]
            windows = torch.cat([before, ids], 1).unfold(1, size, 1)[ends]  # int64 [P, S]
            # <s>, the last of its window, is the first of a patch in which nothing else is.
            first = (step.positions[ends] == 0)[:, None]
            inside = model.patch_embedding(torch.where(first, windows.flip(1), windows))
            inside = inside.masked_fill((first & (torch.arange(size, device=ids.device) > 0))[..., None], 0)
            layers = model.global_transformer.layers
            y = through_patches(layers, self.settings["global"], inside.flatten(1), total, state.global_)
            pieces = torch.cat([pieces, y.unflatten(1, (size, -1))])
        entries = torch.from_numpy(last_ended(ends.cpu().numpy())).to(ids.device)
        state.read = pieces[last_real(entries, torch.arange(len(ids), device=ids.device), step.sizes)]
        return pieces[entries, place]
