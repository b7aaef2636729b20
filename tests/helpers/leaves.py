"""How many random examples the tests of masks, leaf maps and scores draw."""

from hypothesis import settings
from hypothesis import strategies as st

few = settings(max_examples=60)
seeds = st.integers(0, 2**31)
