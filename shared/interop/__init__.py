"""Weights and settings to and from others' folders (law 8): transformers' BltForCausalLM both ways, and the released
reference's own layout inwards. A model here and its counterpart there give equal logits.
"""
