"""The model family: vision encoder, visual tokenizer, language model, and their union."""
