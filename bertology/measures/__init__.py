"""What do heads and layers do? One question a file."""

from . import figures as figures  # registers how results are drawn
