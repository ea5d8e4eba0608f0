"""Families of models: what tells one from another, apart from the numbers of its configuration."""

from model.families import infinitevl, qwen35  # noqa: F401  # each enters itself
