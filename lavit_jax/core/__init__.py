"""What every room may use: vocabulary, device mesh, sequences, losses, products."""
