"""What transformers asks of a model that generates, whatever its kind: padding, loss, a cache of what was read.

Shapes: B rows, S columns of ids, of which some may be padding, n columns without it, D width, V vocabulary.
"""

from dataclasses import field, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from shared.interop.custom_code.layers import Step

CACHE_NAMES = ("cache", "past_key_values")
"""What a call is given to read on: the name since transformers 5.24, and the one before."""
CACHE = next(name for name in CACHE_NAMES if name in {field.name for field in fields(CausalLMOutputWithPast)})
"""The name that this transformers has for it."""
COLUMNS_AT_ONCE = 2048
"""A call without gradients reads so many columns at a time: a long prompt takes no more memory than its states."""


class PatchworkConfig(PreTrainedConfig):
    """Keys of transformers, and ``patchwork``: settings of the model, its entropy model and its patches."""

    keys_to_ignore_at_inference: ClassVar[list] = list(CACHE_NAMES)  # a list: Trainer adds one to it
    # Fields, since transformers makes an __init__ of its own for a subclass that has none.
    patchwork: dict = field(default_factory=dict)
    use_cache: bool = True  # false for transformers' own class; this one follows the argument of each call


class PatchworkCache:
    """What was read of B texts, as `CACHE` says: each call of the model reads on, and changes it."""

    # What generate asks of any cache.
    is_compileable, is_croppable, is_linear = False, False, (False,)

    def __init__(self, rows: int, state: Any) -> None:
        self.lengths = [0] * rows
        """Ids so far, by row, padding left out."""
        self.columns = 0
        """Columns so far, padding included."""
        self.state = state
        """What the model itself keeps."""
        self.last: Tensor | None = None
        """[B, D], the states of the last ids."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns so far."""
        return self.columns


class Padding:
    """Which columns of a call are real, and the same ids without padding, at the left of their rows."""

    def __init__(self, shape: torch.Size, mask: Tensor | None) -> None:
        rows, columns = shape
        self.sizes, self._order, self._number = [columns] * rows, None, None
        if mask is not None:
            mask = mask > 0
            self.sizes = mask.sum(1).tolist()
            if min(self.sizes) < columns:
                self._order = torch.argsort(~mask, dim=1, stable=True)[:, : max(self.sizes)]
                self._number = mask.cumsum(1)

    def left_out(self, x: Tensor, fill: int) -> Tensor:
        """[B, S] -> [B, n], with ``fill`` behind what is real."""
        if self._order is None:
            return x
        sizes = torch.tensor(self.sizes, device=x.device)
        behind = torch.arange(self._order.shape[1], device=x.device) >= sizes[:, None]
        return x.gather(1, self._order).masked_fill(behind, fill)

    def put_back(self, states: Tensor, last: Tensor | None, keep: slice | Tensor) -> Tensor:
        """States [B, n, D] of the columns to keep; padding has those of the last id before it, of ``last`` [B, D]."""
        if self._number is None:
            return states[:, keep]
        before = torch.zeros_like(states[:, 0]) if last is None else last
        return torch.cat([before[:, None], states], 1).gather(
            1, self._number[:, keep, None].expand(-1, -1, states.shape[2])
        )


class PatchworkForCausalLM(PreTrainedModel, GenerationMixin):
    """Next-id logits. Rows of a batch may be padded on either side: what `attention_mask` hides is not there."""

    config_class = PatchworkConfig
    main_input_name = "input_ids"
    _supports_sdpa = True
    _is_stateful = True  # what was read cannot be taken back: no assisted generation

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=module.weight.shape[-1] ** -0.5)

    def new_state(self, rows: int) -> Any:
        """What the model keeps of rows that have not begun."""
        raise NotImplementedError

    def states(self, ids: Tensor, step: Step, state: Any) -> Tensor:
        """ids int64 [B, n] after what is kept -> [B, n, D], what `logits` reads."""
        raise NotImplementedError

    def logits(self, states: Tensor) -> Tensor:
        """[B, n, D] -> fp32 [B, n, V]."""
        return F.linear(self.model.norm(states).float(), self.lm_head.weight.float())

    def added_loss(self, state: Any) -> Tensor | None:
        """What training adds to the mean loss of labels; None for most models."""
        return None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: PatchworkCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        cache: PatchworkCache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """Logits of what follows each id; with labels (-100: none) the mean loss of all that have one, and what
        training adds to it.

        ``past_key_values`` and ``cache`` are two names of one thing: with it, or ``use_cache``, there are no gradients.
        """
        _refuse(kwargs)
        if cache is not None and past_key_values is not None:
            raise ValueError("cache and past_key_values are two names of one thing: give one of them")
        cache = past_key_values if cache is None else cache
        keeps = bool(use_cache or cache)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not keeps):
            ids, mask = _checked(input_ids, attention_mask, cache)
            if cache is None:
                cache = PatchworkCache(len(ids), self.new_state(len(ids)))
            padding = Padding(ids.shape, mask)
            if max(padding.sizes) == 0 or min(map(sum, zip(cache.lengths, padding.sizes))) == 0:
                raise ValueError("a row of input_ids is all padding: each row needs an id, at least <s>")
            states = self._read(padding.left_out(ids, self.config.pad_token_id), padding.sizes, cache)
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits, loss = self.logits(padding.put_back(states, cache.last, keep)), None
            cache.last = padding.put_back(states, cache.last, slice(-1, None))[:, 0]
            cache.columns += ids.shape[1]
            if labels is not None:
                wanted = padding.left_out(labels.long(), -100)
                loss = self.loss_function(self.logits(states), wanted, vocab_size=self.config.vocab_size, **kwargs)
                if self.training and (added := self.added_loss(cache.state)) is not None:
                    targets, all_targets = (wanted[:, 1:] != -100).sum(), kwargs.get("num_items_in_batch")
                    # Of several calls whose losses are summed each adds its share.
                    loss = loss + added * (1 if all_targets is None else targets / all_targets)
        out = CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: cache if keeps else None})
        return out.to_tuple() if return_dict is False else out

    def _read(self, ids: Tensor, sizes: list[int], cache: PatchworkCache) -> Tensor:
        """ids int64 [B, n], of which the first ``sizes`` of a row are real, a part at a time -> [B, n, D]."""
        part, found = ids.shape[1] if torch.is_grad_enabled() else COLUMNS_AT_ONCE, []
        for begin in range(0, ids.shape[1], part):
            some = ids[:, begin : begin + part]
            here = [min(max(size - begin, 0), some.shape[1]) for size in sizes]
            step = Step.of(cache.lengths, here, some.shape[1], ids.device)
            found.append(self.states(some, step, cache.state))
            cache.lengths = [length + size for length, size in zip(cache.lengths, here)]
        return torch.cat(found, 1)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As of any model of transformers, by what is kept of the texts unless ``use_cache=False``; no beam search."""
        config = kwargs.get("generation_config") or self.generation_config
        if (kwargs.get("num_beams") or config.num_beams or 1) > 1:
            raise ValueError("num_beams must be 1: beams cannot share what was read of a text. Sample instead")
        kwargs.setdefault("use_cache", True)  # the folder's own settings say false, for the class of transformers
        return super().generate(*args, **kwargs)

    def _prepare_cache_for_generation(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is made ahead: the first call of forward makes a cache, of as many rows as there are."""


NOT_READ = {
    "position_ids": "positions are counted from the first id that attention_mask does not hide",
    "inputs_embeds": "patches are found in ids",
    "patch_lengths": "this class finds patches itself",
    "output_hidden_states": "they are of bytes and of patches",
    "output_attentions": "none are kept",
}
"""Arguments of other models that would change what a call means, and why there are none here."""


def _refuse(kwargs: dict[str, Any]) -> None:
    """Raise ValueError for one of them."""
    for name, reason in NOT_READ.items():
        if kwargs.get(name) is not None and kwargs[name] is not False:
            raise ValueError(f"{name} cannot be given: {reason}")


def _checked(ids: Tensor, mask: Tensor | None, cache: PatchworkCache | None) -> tuple[Tensor, Tensor | None]:
    """int64 [B, S] and the mask of these columns. Raises ValueError where they do not belong to what was read."""
    if ids.dim() != 2 or not len(ids):
        raise ValueError(f"input_ids is {list(ids.shape)}: a row for each text is wanted, [B, S]")
    read = 0 if cache is None else cache.columns
    if cache is not None and len(cache.lengths) != len(ids):
        raise ValueError(f"{CACHE} is of {len(cache.lengths)} texts, input_ids of {len(ids)}")
    if mask is None:
        return ids.long(), None
    wanted = [len(ids), read + ids.shape[1]]
    if list(mask.shape) != wanted:
        raise ValueError(f"attention_mask is {list(mask.shape)}, not {wanted}: the columns read before, and these")
    if cache is not None and (mask[:, :read] > 0).sum(1).tolist() != cache.lengths:
        raise ValueError(f"attention_mask hides ids that were read already: begin without {CACHE}")
    return ids.long(), mask[:, read:]
