"""What all scripts import, for the process of which `helpers.scripts` makes copies."""

import bertology  # noqa: F401
import bertology.edge_probing  # noqa: F401
import bertology.syntax  # noqa: F401
