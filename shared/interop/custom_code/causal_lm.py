"""What transformers asks of a model that generates, whatever its kind: padding, loss, what is kept of texts.

Shapes: B rows, S columns of ids, of which padding is any, n columns of a step, D width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from shared.interop.custom_code.layers import Step

COLUMNS_AT_ONCE = 2048
"""Of a call that is not differentiated."""


class PatchworkConfig(PreTrainedConfig):
    """What a model was made from is in ``patchwork``, as its trainer recorded it."""

    keys_to_ignore_at_inference = ("past_key_values",)

    def __init__(self, patchwork: dict | None = None, **kwargs: Any) -> None:
        self.patchwork = patchwork or {}
        super().__init__(**kwargs)


class Texts:
    """B texts that a model reads on with each call: what `generate` hands back as ``past_key_values``."""

    is_compileable = False

    def __init__(self, lengths: list[int], kept: Any) -> None:
        self.lengths = lengths
        """Ids so far, by row, padding left out."""
        self.columns = 0
        """The same with padding."""
        self.kept = kept
        """What the body keeps."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.columns


class Real:
    """Which columns of a call are no padding, and the same ids without it, at the left of their rows."""

    def __init__(self, shape: torch.Size, mask: Tensor | None, device: torch.device) -> None:
        rows, columns = shape
        self.counts, self._order, self._last = [columns] * rows, None, None
        if mask is not None:
            mask = mask[:, -columns:] > 0
            self.counts = mask.sum(1).tolist()
            if min(self.counts) < columns:
                self._order = torch.argsort(~mask, dim=1, stable=True)[:, : max(self.counts)]
                self._last = (mask.cumsum(1) - 1).clamp(min=0)

    def aligned(self, x: Tensor, padding: int) -> Tensor:
        """[B, S] -> [B, n]."""
        if self._order is None:
            return x
        counts = torch.tensor(self.counts, device=x.device)
        past = torch.arange(self._order.shape[1], device=x.device) >= counts[:, None]
        return x.gather(1, self._order).masked_fill(past, padding)

    def back(self, x: Tensor, keep: slice | Tensor) -> Tensor:
        """States [B, n, D] of the columns to keep: padding has those of the last id before it."""
        if self._last is None:
            return x[:, keep]
        return x.gather(1, self._last[:, keep, None].expand(-1, -1, x.shape[2]))


class PatchworkForCausalLM(PreTrainedModel, GenerationMixin):
    """Next-id logits. Rows of a batch may be padded on either side: what `attention_mask` hides is not there."""

    config_class = PatchworkConfig
    main_input_name = "input_ids"
    _supports_sdpa = True
    _is_stateful = True  # what was read cannot be taken back: no assisted generation

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=module.weight.shape[-1] ** -0.5)

    def fresh(self, rows: int) -> Any:
        """What the body keeps of rows that have not begun."""
        raise NotImplementedError

    def states(self, ids: Tensor, step: Step, counts: list[int], kept: Any) -> Tensor:
        """ids int64 [B, n], of which a row has ``counts``, after what is kept -> [B, n, D]."""
        raise NotImplementedError

    def logits(self, states: Tensor) -> Tensor:
        """[B, n, D] -> fp32 [B, n, V]."""
        raise NotImplementedError

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Texts | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of what follows each id; with labels (-100: none) the mean loss of all that have one."""
        rows = len(input_ids)
        texts = past_key_values or Texts([0] * rows, self.fresh(rows))
        real = Real(input_ids.shape, attention_mask, input_ids.device)
        if min(start + count for start, count in zip(texts.lengths, real.counts)) == 0:
            raise ValueError("a row of input_ids is padding alone: each needs an id, <s> at least")
        ids = real.aligned(input_ids, self.config.pad_token_id)
        # A part at a time, so that a long prompt takes no more memory than its states.
        part = max(ids.shape[1], 1) if torch.is_grad_enabled() else COLUMNS_AT_ONCE
        found = []
        for begin in range(0, ids.shape[1], part):
            some = ids[:, begin : begin + part]
            counts = [min(max(count - begin, 0), some.shape[1]) for count in real.counts]
            step = Step.of(texts.lengths, some.shape[1], ids.device)
            found.append(self.states(some, step, counts, texts.kept))
            texts.lengths = [length + count for length, count in zip(texts.lengths, counts)]
        states = torch.cat(found, 1)
        texts.columns += input_ids.shape[1]
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        loss = None
        if labels is not None:
            wanted = real.aligned(labels, -100)
            loss = self.loss_function(self.logits(states), wanted, vocab_size=self.config.vocab_size, **kwargs)
        given = texts if past_key_values is not None or (use_cache and not self.training) else None
        return CausalLMOutputWithPast(loss=loss, logits=self.logits(real.back(states, keep)), past_key_values=given)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As of any model of transformers, by what is kept of the texts unless ``use_cache=False``; no beam search."""
        config = kwargs.get("generation_config") or self.generation_config
        if (kwargs.get("num_beams") or config.num_beams or 1) > 1:
            raise ValueError("num_beams must be 1: what was read of a text cannot be shared by beams. Sample instead")
        if kwargs.get("generation_config") is None:
            kwargs.setdefault("use_cache", True)  # the folder's own says false, for the class that transformers has
        return super().generate(*args, **kwargs)

    def _prepare_cache_for_generation(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is made ahead: the first call of forward makes it, of as many rows as there are."""
