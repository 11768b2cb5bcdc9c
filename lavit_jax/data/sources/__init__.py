"""Readers of other people's data: each cuts its input in parts and reads a part."""
