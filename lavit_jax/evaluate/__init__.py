"""Figures: from model outputs and truths to numbers with their chance levels."""
