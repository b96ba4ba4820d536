"""Where rows come from before they are prepared: the hub, its cache, or a local copy."""

from apgd.data.origins._rows import Origin, SourceSplit
from apgd.data.origins.hub import HubOrigin
from apgd.data.origins.local import LocalOrigin, class_names_in

__all__ = ["HubOrigin", "LocalOrigin", "Origin", "SourceSplit", "class_names_in"]
