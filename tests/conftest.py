"""Shared by all tests: no hub, one thread count, and no leftovers between tests."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
