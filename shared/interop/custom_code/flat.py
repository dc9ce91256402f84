"""A transformer over bytes, or over the tokens of a tokenizer: an embedding, one stack of blocks, a head.

Shapes: B rows, n new ids of each, D width, M ids that n-grams reach.
"""

import torch
from torch import Tensor, nn

from shared.interop.custom_code.causal_lm import PatchworkConfig, PatchworkForCausalLM
from shared.interop.custom_code.layers import KeyValues, RMSNorm, Step, blocks, through_stack, within_lines
from shared.interop.custom_code.ngrams import NO_TABLES, following, ngrams, reach, table


class PatchworkFlatConfig(PatchworkConfig):
    """The record of what the model is, and what transformers asks for."""

    model_type = "patchwork_flat"


class FlatModel(nn.Module):
    """All parts, by the names that transformers has for those of a Llama."""

    def __init__(self, settings: dict) -> None:
        super().__init__()
        width = settings["width"]
        self.ngram_embedding = table(settings.get("ngrams", NO_TABLES), width)
        self.embed_tokens = nn.Embedding(settings["vocabulary"], width)
        self.layers = blocks(settings)
        self.norm = RMSNorm(width, settings["norm_eps"])


class FlatState:
    """What is kept of B rows."""

    def __init__(self, rows: int, settings: dict, device: torch.device) -> None:
        self.key_values = KeyValues(settings["layers"], rows)
        self.tail = torch.zeros(rows, reach(settings.get("ngrams", NO_TABLES)), dtype=torch.int64, device=device)
        """int64 [B, M], the last ids, which n-grams reach."""
        self.since = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        """int64 [B, 1], the position of the newline before which a model with ``newline_reset`` sees nothing."""


class PatchworkFlatForCausalLM(PatchworkForCausalLM):
    """Each id costs what it adds: a call computes its own ids alone."""

    config_class = PatchworkFlatConfig

    def __init__(self, config: PatchworkFlatConfig) -> None:
        super().__init__(config)
        self.settings = config.patchwork["model"]
        self.model = FlatModel(self.settings)
        self.lm_head = nn.Linear(self.settings["width"], config.vocab_size, bias=False)
        self.post_init()

    def new_state(self, rows: int) -> FlatState:
        return FlatState(rows, self.settings, self.lm_head.weight.device)

    def states(self, ids: Tensor, step: Step, state: FlatState) -> Tensor:
        model, settings = self.model, self.settings
        if settings.get("newline_reset"):
            step, state.since = within_lines(ids, step, state.since)
        x = model.embed_tokens(ids)
        if model.ngram_embedding is not None:
            x = x + ngrams(state.tail, ids, settings["ngrams"], model.ngram_embedding.weight)
        state.tail = following(state.tail, ids, step.sizes)
        return through_stack(model.layers, settings, x, step, settings["window"], state.key_values)
