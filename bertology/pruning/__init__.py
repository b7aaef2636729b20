"""How many heads can be removed, and what is the smaller model?"""

from . import figures as figures  # registers how results are drawn
