"""Encoder, losses, groups, memory and the training step: torch alone, no files and no clocks."""
