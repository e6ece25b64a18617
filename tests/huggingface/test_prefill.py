"""bench/prefill.py, tried small."""

import pytest

from bench import prefill


@pytest.mark.slow
def test_every_method_is_timed():
    table = [line.split(" | ") for line in prefill.report(64, 1).splitlines() if line.startswith("| ")]
    assert [row[0].strip("| ") for row in table[1:]] == ["none", *prefill.METHODS]
    for row in table[2:]:
        tokens = [int(count) for count in row[1].split(", ")]
        assert len(tokens) == prefill.LAYERS
        assert tokens[-1] < prefill.TOKENS
        assert 0 < float(row[5]) < float(row[2])
