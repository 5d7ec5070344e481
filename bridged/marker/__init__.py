"""From an acceptance to the marker beside the document."""

from bridged.marker.mark import MARKER_FOLLOWS, Marker, find
from bridged.marker.marking import Marking

__all__ = ["MARKER_FOLLOWS", "Marker", "Marking", "find"]
