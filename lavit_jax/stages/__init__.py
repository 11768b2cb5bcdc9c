"""The training stages, and finetuning after them."""
