"""Asking a model what it knows and scoring the answers; knows nothing of training."""
