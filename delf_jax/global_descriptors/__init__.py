"""One descriptor a photograph: extraction, search, whitening, training."""
