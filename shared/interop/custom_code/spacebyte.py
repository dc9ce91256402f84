"""SpaceByte (arXiv 2404.14408): a byte transformer, with large blocks at the last byte of each patch only.

Shapes: B rows, n new ids of each, P patches that end among them, D width of bytes, M ids that n-grams reach.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.interop.custom_code.boundaries import Boundaries, RuleConfig, RuleModel
from shared.interop.custom_code.causal_lm import PatchworkForCausalLM
from shared.interop.custom_code.layers import KeyValues, RMSNorm, Stack, Step
from shared.interop.custom_code.ngrams import NO_TABLES, following, ngrams, reach, table
from shared.interop.custom_code.patches import PatchCache, through_patches


class PatchworkSpacebyteConfig(RuleConfig):
    """The record of what the model is, and what transformers asks for."""

    model_type = "patchwork_spacebyte"


class SpacebyteModel(RuleModel):
    """All parts."""

    def __init__(self, config: PatchworkSpacebyteConfig) -> None:
        super().__init__(config)
        settings = config.patchwork["model"]
        width = settings["before"]["width"]
        self.ngram_embedding = table(settings.get("ngrams", NO_TABLES), width)
        self.embed_tokens = nn.Embedding(settings["vocabulary"], width)
        self.before = Stack(settings["before"])
        self.global_transformer = Stack(settings["global"])
        self.after = Stack(settings["after"])
        self.norm = RMSNorm(width, settings["after"]["norm_eps"])


class SpacebyteState:
    """What is kept of B rows."""

    def __init__(self, rows: int, settings: dict, boundaries: Boundaries, device: torch.device) -> None:
        self.before, self.after = (KeyValues(settings[name]["layers"], rows) for name in ("before", "after"))
        self.global_ = PatchCache(settings["global"], rows)
        self.boundaries = boundaries
        self.tail = torch.zeros(rows, reach(settings.get("ngrams", NO_TABLES)), dtype=torch.int64, device=device)
        """int64 [B, M], the last ids, which n-grams reach."""


class PatchworkSpacebyteForCausalLM(PatchworkForCausalLM):
    """Each byte costs what it adds: the small blocks run once a byte, the large ones once a patch."""

    config_class = PatchworkSpacebyteConfig
    _keep_in_fp32_modules_strict = ("patcher",)  # in another dtype patches would end elsewhere

    def __init__(self, config: PatchworkSpacebyteConfig) -> None:
        super().__init__(config)
        self.settings = config.patchwork["model"]
        self.model = SpacebyteModel(config)
        self.lm_head = nn.Linear(self.settings["after"]["width"], config.vocab_size, bias=False)
        self.post_init()

    def new_state(self, rows: int) -> SpacebyteState:
        boundaries = Boundaries(self.model, self.config, rows)
        return SpacebyteState(rows, self.settings, boundaries, self.lm_head.weight.device)

    def states(self, ids: Tensor, step: Step, state: SpacebyteState) -> Tensor:
        model, settings, window = self.model, self.settings, self.settings["window"]
        ends = state.boundaries.ends(model, ids, step)
        x = model.embed_tokens(ids)
        if model.ngram_embedding is not None:
            x = x + ngrams(state.tail, ids, settings["ngrams"], model.ngram_embedding.weight)
        state.tail = following(state.tail, ids, step.sizes)
        x = model.before(x, step, window, state.before)
        if ends.any():
            width, places = x.shape[2], torch.from_numpy(ends).to(x.device).nonzero(as_tuple=True)
            # Between the widths there are zeros and a cut.
            last = F.pad(x[places], (0, settings["global"]["width"] - width))
            layers = model.global_transformer.layers
            y = through_patches(layers, settings["global"], last, ends.sum(1), state.global_)[:, :width]
            x = x.index_put(places, y.to(x.dtype), accumulate=True)
        return model.after(x, step, window, state.after)
