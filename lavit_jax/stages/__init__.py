"""The training stages: contrastive, visual tokenizer, pretrain."""
