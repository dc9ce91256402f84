"""The byte latent transformer (arXiv 2412.09871): local encoder, global transformer, local decoder, and the entropy
model that finds where patches begin.

Shapes: B rows, n new ids of each, P patches that end among them, M their bytes, K vectors a patch, X and Y
cross-attentions of encoder and decoder, D local width, H heads, C head width.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.interop.custom_code.boundaries import Boundaries, RuleConfig, RuleModel
from shared.interop.custom_code.causal_lm import PatchworkForCausalLM
from shared.interop.custom_code.layers import KeyValues, RMSNorm, Step, blocks, head_width, through_block
from shared.interop.custom_code.ngrams import following, ngrams, reach
from shared.interop.custom_code.patches import PatchCache, last_ended, through_patches
from shared.interop.custom_code.pooling import Pooling, weighted


class PatchworkBltConfig(RuleConfig):
    """All keys of transformers' own, and the record of what the model was trained with."""

    model_type = "blt"


class CrossAttention(nn.Module):
    """Between a patch and its own bytes, or a byte and the patch before: neither has positions.

    The residual is doubled, as in the published weights.
    """

    def __init__(self, stack: dict) -> None:
        super().__init__()
        width, self.heads = stack["width"], stack["heads"]
        self.groups = stack["kv_heads"] or self.heads
        self.q_norm, self.k_norm = RMSNorm(width, stack["norm_eps"]), RMSNorm(width, stack["norm_eps"])
        queries, keys = (heads * head_width(stack) for heads in (self.heads, self.groups))
        self.q_proj = nn.Linear(width, queries, bias=False)
        self.k_proj = nn.Linear(width, keys, bias=False)
        self.v_proj = nn.Linear(width, keys, bias=False)
        self.o_proj = nn.Linear(queries, width, bias=False)

    def queries(self, x: Tensor) -> Tensor:
        """[..., D] -> fp32 [..., H, C]."""
        return self.q_proj(self.q_norm(x)).float().unflatten(-1, (self.heads, -1))

    def keys_values(self, x: Tensor) -> Tensor:
        """[..., D] -> fp32 [..., 2, H, C]."""
        x = self.k_norm(x)
        both = torch.stack([p(x).float().unflatten(-1, (self.groups, -1)) for p in (self.k_proj, self.v_proj)], -3)
        return both.repeat_interleave(self.heads // self.groups, -2)

    def patches_read(self, patches: Tensor, states: Tensor, patch: Tensor) -> Tensor:
        """Vectors [P, K, D] of patches, bytes [M, D] and int64 [M] which patch has each -> [P, K, D]."""
        q, (keys, values) = self.queries(patches), self.keys_values(states)[:, None].unbind(2)
        scores = (q[patch] * keys).sum(-1) * q.shape[-1] ** -0.5  # [M, K, H]
        seen = weighted(scores, values, patch, len(q))
        return 2 * patches + self.o_proj(seen.flatten(-2).to(patches.dtype))

    def bytes_read(self, x: Tensor, both: Tensor) -> Tensor:
        """Bytes [N, D], the keys and values of the patch that each reads [N, K, 2, H, C] -> [N, D]."""
        keys, values = both.unbind(2)
        scores = (self.queries(x)[:, None] * keys).sum(-1) * keys.shape[-1] ** -0.5  # [N, K, H]
        seen = (scores.softmax(1)[..., None] * values).sum(1)
        return 2 * x + self.o_proj(seen.flatten(-2).to(x.dtype))


def crosses_of(model: dict, stack: str) -> int:
    """How many cross-attentions the encoder or decoder has."""
    if stack == "encoder" and model.get("pooling", "cross") != "cross":
        return 0
    return model[stack]["layers"] if model[f"{stack}_cross_all_layers"] else 1


class LocalEncoder(nn.Module):
    """From ids to byte states, and from these to patches."""

    def __init__(self, model: dict) -> None:
        super().__init__()
        stack = model["encoder"]
        crosses = crosses_of(model, "encoder")
        self.embed_tokens = nn.Embedding(model["vocabulary"], stack["width"])
        self.layers = blocks(stack)
        self.patch_embedding_projection = nn.Linear(stack["width"], model["queries"] * stack["width"], bias=False)
        self.cross_attn_layers = nn.ModuleList(CrossAttention(stack) for _ in range(crosses))
        self.pooling = Pooling(model.get("pooling", "cross"), stack)


class GlobalTransformer(nn.Module):
    """Over patches."""

    def __init__(self, model: dict) -> None:
        super().__init__()
        inputs, width = model["queries"] * model["encoder"]["width"], model["global"]["width"]
        self.token_embedding_projection = nn.Linear(inputs, width, bias=False) if inputs != width else nn.Identity()
        self.layers = blocks(model["global"])


class LocalDecoder(nn.Module):
    """From byte states and patches to what is next."""

    def __init__(self, model: dict) -> None:
        super().__init__()
        stack = model["decoder"]
        crosses = crosses_of(model, "decoder")
        outputs = model["queries"] * stack["width"]
        self.patch_embedding_projection = nn.Linear(model["global"]["width"], outputs, bias=False)
        self.cross_attn_layers = nn.ModuleList(CrossAttention(stack) for _ in range(crosses))
        self.layers = blocks(stack)
        self.norm = RMSNorm(stack["width"], stack["norm_eps"])


class BltModel(RuleModel):
    """All parts, by the names that transformers has for them."""

    def __init__(self, config: PatchworkBltConfig) -> None:
        super().__init__(config)
        model, tables = config.patchwork["model"], config.patchwork["model"]["ngrams"]
        count = len(tables["sizes"]) * tables["functions"]
        self.encoder_hash_tok_embedding = nn.Embedding(tables["rows"] * count, model["encoder"]["width"])
        self.local_encoder = LocalEncoder(model)
        self.global_transformer = GlobalTransformer(model)
        self.local_decoder = LocalDecoder(model)


class BltState:
    """What is kept of B rows."""

    def __init__(
        self, rows: int, model: dict, boundaries: Boundaries, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.encoder, self.decoder = (KeyValues(model[name]["layers"], rows) for name in ("encoder", "decoder"))
        self.global_ = PatchCache(model["global"], rows)
        self.boundaries = boundaries
        self.tail = torch.zeros(rows, reach(model["ngrams"]), dtype=torch.int64, device=device)
        """int64 [B, M], the last ids, which n-grams reach."""
        width, crosses = model["encoder"]["width"], max(crosses_of(model, "encoder"), 1)
        self.open = torch.zeros(crosses, rows, 0, width, dtype=dtype, device=device)
        """[X, B, L, D]: encoder states of the bytes of the patch that is open, at the right of L columns."""
        self.opened = np.zeros(rows, np.int64)
        """How many of them there are."""
        self.read: Tensor | None = None
        """[Y, B, K, 2, H, C]: keys and values of the last whole patch, for each cross-attention of the decoder."""


class PatchworkBltForCausalLM(PatchworkForCausalLM):
    """Each byte costs what it adds: local and entropy model run once a byte, the global one once a patch."""

    config_class = PatchworkBltConfig
    _keep_in_fp32_modules_strict = ("patcher",)  # in another dtype patches would begin elsewhere

    def __init__(self, config: PatchworkBltConfig) -> None:
        super().__init__(config)
        self.settings = config.patchwork["model"]
        self.model = BltModel(config)
        self.lm_head = nn.Linear(self.settings["decoder"]["width"], config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Of ids, without their n-grams."""
        return self.model.local_encoder.embed_tokens

    def new_state(self, rows: int) -> BltState:
        weight = self.lm_head.weight
        boundaries = Boundaries(self.model, self.config, rows)
        return BltState(rows, self.settings, boundaries, weight.device, weight.dtype)

    def states(self, ids: Tensor, step: Step, state: BltState) -> Tensor:
        model, settings = self.model, self.settings
        ends = state.boundaries.ends(model, ids, step)
        encoded = self.encoded(ids, step, state)
        state.tail = following(state.tail, ids, step.sizes)
        reads = self.read_patches(encoded, ends, step.sizes, state)
        x, decoder, stack = encoded[-1], model.local_decoder, settings["decoder"]
        for number, block in enumerate(decoder.layers):
            if number < len(reads):
                flat = decoder.cross_attn_layers[number].bytes_read(x.flatten(0, 1), reads[number].flatten(0, 1))
                x = flat.unflatten(0, ids.shape)
            x = through_block(block, stack, number, x, step, settings["window"], state.decoder)
        return x

    def encoded(self, ids: Tensor, step: Step, state: BltState) -> Tensor:
        """[X, B, n, D]: byte states after each block of the encoder whose bytes patches read."""
        model, settings = self.model, self.settings
        encoder = model.local_encoder
        x = encoder.embed_tokens(ids)
        if settings["ngrams"]["sizes"]:
            x = x + ngrams(state.tail, ids, settings["ngrams"], model.encoder_hash_tok_embedding.weight)
        found = []
        for number, block in enumerate(encoder.layers):
            x = through_block(block, settings["encoder"], number, x, step, settings["window"], state.encoder)
            found.append(x)
        return torch.stack(found[-max(len(encoder.cross_attn_layers), 1) :])

    def read_patches(self, encoded: Tensor, ends: np.ndarray, sizes: list[int], state: BltState) -> Tensor:
        """Run the global model over the patches that end here -> [Y, B, n, K, 2, H, C], what the decoder reads."""
        rows, columns = ends.shape
        states = torch.cat([state.open, encoded], 2)
        before = state.open.shape[2]
        # The patch of each column, counted in its row; open patches and columns that are not there have none.
        places = np.arange(before + columns)
        there = (places >= before - state.opened[:, None]) & (places < before + np.array(sizes)[:, None])
        number = np.zeros(there.shape, np.int64)
        number[:, before + 1 :] = ends[:, :-1].cumsum(1)
        total = ends.sum(1)
        whole, left = there & (number < total[:, None]), there & (number >= total[:, None])
        vectors = self.patch_vectors(states, whole, number, total) if total.any() else None
        state.opened = left.sum(1)
        length = int(state.opened.max())
        order = torch.from_numpy(np.argsort(left, axis=1, kind="stable")[:, left.shape[1] - length :])
        index = order.to(states.device)[None, :, :, None].expand(len(states), -1, -1, states.shape[3])
        state.open = states.gather(2, index)
        table = self.tables(vectors, total, state)
        found = table[:, torch.from_numpy(last_ended(ends)).to(table.device)]
        state.read = found[:, torch.arange(rows), torch.tensor(sizes).clamp(min=1) - 1]
        return found

    def patch_vectors(self, states: Tensor, whole: np.ndarray, number: np.ndarray, total: np.ndarray) -> Tensor:
        """Byte states [X, B, L, D] -> the vectors of whole patches [P, K, D], row by row."""
        settings, encoder = self.settings, self.model.local_encoder
        patch = torch.from_numpy((number + (np.cumsum(total) - total)[:, None])[whole]).to(states.device)
        own, count = states[:, torch.from_numpy(whole).to(states.device)], int(total.sum())
        pooled = encoder.patch_embedding_projection(encoder.pooling(own[0], patch, count))
        vectors = pooled.unflatten(-1, (settings["queries"], -1))
        for cross, bytes_of_patches in zip(encoder.cross_attn_layers, own):
            vectors = cross.patches_read(vectors, bytes_of_patches, patch)
        return vectors

    def tables(self, vectors: Tensor | None, total: np.ndarray, state: BltState) -> Tensor:
        """[Y, B + P, K, 2, H, C]: what rows have read so far, and each new patch after the global model."""
        settings, decoder = self.settings, self.model.local_decoder
        if vectors is None:
            assert state.read is not None, "the first id ends a patch"
            return state.read
        model = self.model.global_transformer
        x = model.token_embedding_projection(vectors.flatten(1)) * settings.get("input_scale", 1.0)
        out = through_patches(model.layers, settings["global"], x, total, state.global_)
        vectors = decoder.patch_embedding_projection(out).unflatten(-1, (settings["queries"], -1))
        both = torch.stack([cross.keys_values(vectors) for cross in decoder.cross_attn_layers])
        first = both.new_zeros(len(both), len(total), *both.shape[2:]) if state.read is None else state.read
        return torch.cat([first, both], 1)

    def logits(self, states: Tensor) -> Tensor:
        return F.linear(self.model.local_decoder.norm(states).float(), self.lm_head.weight.float())
