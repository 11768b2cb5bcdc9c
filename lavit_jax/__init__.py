"""LaVIT in JAX and Flax: unified language-vision pretraining with dynamic visual tokens."""
