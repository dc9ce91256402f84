"""Writing text byte by byte: what is chosen, when it ends, and how it is shown."""
