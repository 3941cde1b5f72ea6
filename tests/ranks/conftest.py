"""One process that all ranks are forked from."""

from __future__ import annotations

import pytest

from tests.ranks.starting import starter


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """Starts programs as so many ranks."""
    with starter(tmp_path_factory.mktemp("said")) as made:
        yield made
