"""What do heads and layers do? One question a file."""

from . import attention_figures as attention_figures  # these two register how results are drawn
from . import figures as figures
