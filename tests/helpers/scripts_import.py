"""What all scripts import, for the process of which `helpers.scripts` makes copies."""

import bertology
import bertology.edge_probing
import bertology.syntax

__all__ = ["bertology"]
