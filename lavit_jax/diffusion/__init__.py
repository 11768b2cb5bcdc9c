"""Diffusion: the noise schedule, and the solvers that walk it back."""
