"""What came out? Results, their statistics and their pictures."""

from . import figures as figures  # registers how results are drawn
