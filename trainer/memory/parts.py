"""Parts of a rank's memory: which leave the device with ``parallel.offload``, and what makes them smaller."""

ON_HOST = ("parameters", "gradients", "moments", "tables", "table_moments")

HELP = {
    "parameters": "more ranks, a larger parallel.shard or parallel.offload",
    "gradients": "more ranks, a larger parallel.shard or parallel.offload",
    "moments": "more ranks, a larger parallel.shard or parallel.offload",
    "tables": "more ranks, smaller model.ngrams.rows or parallel.offload",
    "table_moments": "more ranks, smaller model.ngrams.rows or parallel.offload",
    "gathered": "parallel.keep_gathered = false",
    "activations": "smaller data.tokens, or parallel.activation_checkpointing = 'selective' or 'full'",
    "logits": "smaller data.tokens",
    "passing": "as many ranks as data.packs, so that no gradients are summed over packs",
}
