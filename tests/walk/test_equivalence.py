"""What a block leaves as it is, and how layers that were left are named."""

import pytest

from tarq.walk.equivalence import listed


@pytest.mark.parametrize(
    ("left", "changed", "said"),
    [
        (["a.0.q", "a.1.q", "a.0.k"], ["a.0.v"], "a.*.k, a.*.q"),
        (["a.1.q", "a.3.q"], ["a.0.q", "a.2.q"], "a.1.q, a.3.q"),
        (["a.0.1.q", "a.0.2.q", "a.0.1.3"], [], "a.*.*.3, a.*.*.q"),
    ],
)
def test_layers_of_all_blocks_are_named_once(left, changed, said):
    assert listed(left, changed) == said
