"""Law 8: weights go to and from transformers' BLT with equal logits. The one oracle that is not ours."""

import numpy as np
import pytest
import torch
from model_examples import blt, blt_logits, blt_settings, entropy_model, entropy_settings, pack, random_text

from shared.entropy_model import entropy
from shared.hf import InteropError, from_hf_state, hf_config, to_hf_state
from shared.model_settings import BltSettings, EntropyModelSettings
from shared.patching import PatchingSettings, patch_lengths

LOCAL = {"width": 32, "heads": 4, "feed_forward": 40}
CONFIGS = {
    "projection into a wider global model": blt_settings(),
    "no projection where K D is the global width": blt_settings(global_width=64),
    "one query a patch": blt_settings(queries=1),
    "four queries a patch": blt_settings(queries=4),
    "grouped key/value heads": blt_settings(kv_heads=2),
    "cross-attention in the first decoder layer only": blt_settings(decoder_cross_all_layers=False),
    "two encoder layers": blt_settings(encoder=LOCAL | {"layers": 2}),
    "two hash functions": blt_settings(ngrams={"sizes": (3, 8), "rows": 211, "functions": 2}),
}


def counterpart(settings: BltSettings, patcher: EntropyModelSettings, theta: float):
    from transformers import BltConfig, BltForCausalLM

    model = BltForCausalLM(BltConfig(**hf_config(settings, patcher, theta))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms away from 1, so that forgetting one shows.
            mean, sigma = (1.0, 0.2) if parameter.ndim == 1 else (0.0, parameter.shape[-1] ** -0.5)
            parameter.normal_(mean, sigma)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_entropies_and_boundaries_equal_those_of_transformers(name: str) -> None:
    torch.manual_seed(1)
    settings, patcher_settings = CONFIGS[name], entropy_settings(heads=4, kv_heads=2)
    theirs = counterpart(settings, patcher_settings, theta=0.0)
    state, patcher_state = from_hf_state(theirs.state_dict(), settings, patcher_settings)
    ours, patcher = blt(settings), entropy_model(patcher_settings)
    ours.load_state_dict(state)
    patcher.load_state_dict(patcher_state)

    text = random_text(300, seed=2)  # longer than both windows
    batch = pack([text])
    with torch.no_grad():
        entropies = entropy(patcher(batch.ids, batch.documents))
        # A threshold between two entropies, and not so near one that rounding decides.
        ordered = entropies.sort().values
        gap = 210 + int(ordered[210:240].diff().argmax())
        theirs.config.patching_threshold = theta = float(ordered[gap : gap + 2].mean())
        _, lengths, logits = theirs.model.patcher(batch.ids[None], patch_size=4, threshold=theta)
        oracle = torch.distributions.Categorical(logits=logits[0]).entropy()
        torch.testing.assert_close(entropies, oracle, atol=1e-5, rtol=0)
        tokens = np.append(batch.ids.numpy(), 2).astype(np.int16)
        rule = PatchingSettings(rule="entropy", theta=theta, max_length=512)
        starts = np.cumsum(patch_lengths(tokens, rule, entropies.numpy()))[:-1]
        assert 60 <= len(starts) <= 92
        assert starts.tolist() == np.cumsum(lengths[0].numpy())[: len(starts)].tolist()

        batch = pack([text], rule, [entropies.numpy()])
        difference = blt_logits(ours, batch) - theirs(batch.ids[None], use_cache=False).logits[0]
    assert difference.abs().max() <= 1e-4


def test_gradients_equal_those_of_transformers() -> None:
    torch.manual_seed(2)
    settings, patcher_settings = blt_settings(), entropy_settings()
    theirs = counterpart(settings, patcher_settings, 5.2)
    state, _ = from_hf_state(theirs.state_dict(), settings, patcher_settings)
    ours = blt(settings)
    ours.load_state_dict(state)
    batch = pack([random_text(100, seed=3)])
    lengths = torch.bincount(batch.patches.of_token)
    lengths[-1] += 1  # theirs reach one token further

    blt_logits(ours, batch).square().sum().backward()
    theirs(batch.ids[None], patch_lengths=lengths[None], use_cache=False).logits.square().sum().backward()
    wanted = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    found = to_hf_state({n: p.grad for n, p in ours.named_parameters()}, settings)
    assert found.keys() == {name for name in wanted if "patcher" not in name}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], atol=2e-4, rtol=2e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", CONFIGS)
def test_states_survive_the_way_there_and_back(name: str) -> None:
    settings, patcher_settings = CONFIGS[name], entropy_settings(kv_heads=1)
    ours, patcher = blt(settings).state_dict(), entropy_model(patcher_settings).state_dict()
    state, patcher_state = from_hf_state(
        to_hf_state(ours, settings, patcher, patcher_settings), settings, patcher_settings
    )
    assert patcher_state is not None
    for before, after in ((ours, state), (patcher, patcher_state)):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_what_transformers_cannot_hold_is_refused_with_the_reason() -> None:
    several = blt_settings(encoder=LOCAL | {"layers": 2}, encoder_cross_all_layers=True)
    with pytest.raises(InteropError, match="encoder_cross_all_layers"):
        hf_config(several)
    with pytest.raises(InteropError, match="newline_reset"):
        hf_config(blt_settings(), entropy_settings(newline_reset=True))
    with pytest.raises(InteropError, match="n-gram"):
        hf_config(blt_settings(ngrams={"sizes": ()}))


def test_weights_of_another_shape_are_refused_by_name() -> None:
    settings = blt_settings()
    state = to_hf_state(blt(settings).state_dict(), settings)
    with pytest.raises(InteropError, match="decoder_x has no place"):
        from_hf_state(state | {"decoder_x": torch.zeros(1)}, settings)
    short = dict(state)
    del short["lm_head.weight"]
    with pytest.raises(InteropError, match=r"lm_head\.weight is missing"):
        from_hf_state(short, settings)
    key = "model.local_encoder.layers.0.self_attn.k_proj.weight"
    with pytest.raises(InteropError, match="k_proj"):
        from_hf_state(state | {key: state[key][:-1]}, settings)
