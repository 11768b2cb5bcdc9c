"""What a pod would do with a program, read from the compiled text alone."""
