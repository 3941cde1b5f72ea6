"""Marks of tests that need torchao, which lies in the environment of `make test-vllm`."""

from __future__ import annotations

import importlib.util
import os

import pytest

_missing = importlib.util.find_spec("torchao") is None and "SPPO_TEST_VLLM" not in os.environ
needs_torchao = [pytest.mark.torchao, pytest.mark.skipif(_missing, reason="needs torchao: make test-vllm")]
