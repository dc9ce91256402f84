"""What the pipeline and the trainer have in common."""

__version__ = "0.1.0"
