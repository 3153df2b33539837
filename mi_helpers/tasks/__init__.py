"""Prompts: pairs with a clean and a corrupted side, the tasks that make them, and running text."""

from .corpora import documents, summaries
from .listed import colored_objects, sequence
from .pairs import PromptPairs
from .prompts import docstring, facts, greater_than, induction, ioi
from .sentences import agreement, biographies
from .tokens import bos_token, chat, compare_tokens, readable, token_ids, token_labels
from .windows import order_gain, sample_prompts, text_pairs, texts, texts_by_package

__all__ = [
    "PromptPairs",
    "agreement",
    "biographies",
    "bos_token",
    "chat",
    "colored_objects",
    "compare_tokens",
    "docstring",
    "documents",
    "facts",
    "greater_than",
    "induction",
    "ioi",
    "order_gain",
    "readable",
    "sample_prompts",
    "sequence",
    "summaries",
    "text_pairs",
    "texts",
    "texts_by_package",
    "token_ids",
    "token_labels",
]
