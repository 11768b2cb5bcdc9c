"""The model family: vision encoder, visual tokenizer, language model, their union."""
