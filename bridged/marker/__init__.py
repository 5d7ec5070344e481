"""From an acceptance to the marker beside the document."""

from bridged.marker.finding import find, locate
from bridged.marker.marker import Marker
from bridged.marker.marking import Marking
from bridged.marker.moving import MARKER_FOLLOWS

__all__ = ["MARKER_FOLLOWS", "Marker", "Marking", "find", "locate"]
