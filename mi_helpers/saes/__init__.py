"""Sparse autoencoders: load, train, edit, measure."""

from .loading import alive, available, clamp, fit, held, load, quality, shipped_text, text
from .toys import principal, recovery, toy
from .toys import train as train_toy
from .train import Plan, store, train_local

__all__ = [
    "Plan",
    "alive",
    "available",
    "clamp",
    "fit",
    "held",
    "load",
    "principal",
    "quality",
    "recovery",
    "shipped_text",
    "store",
    "text",
    "toy",
    "train_local",
    "train_toy",
]
