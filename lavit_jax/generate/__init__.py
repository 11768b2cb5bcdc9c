"""Generation: logit processors and the cached decoding loop."""
