"""How systems grow: iso-FLOP curves, fits through them, crossovers and predictions. Free of torch unless noted."""
