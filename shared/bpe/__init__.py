"""Byte-pair tokens (BPE), the baseline that byte models are measured against: how bytes become tokens and ids."""
