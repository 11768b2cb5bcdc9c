"""Weights in and out: tables that map published checkpoints to our parameters."""
