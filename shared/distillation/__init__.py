"""What a model of bytes learns from one of tokens."""
