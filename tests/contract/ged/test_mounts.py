"""Which GEDs are away, told by several threads."""

from __future__ import annotations

import os
import threading

from bridged.ged import Mounts


class Interrupted(dict):
    """A dictionary in which another thread gets its turn while somebody looks."""

    meanwhile = None

    def get(self, key):
        found = super().get(key)
        if self.meanwhile is not None:
            work, self.meanwhile = self.meanwhile, None
            self.other = threading.Thread(target=work)
            self.other.start()
            self.other.join(0.2)
        return found


def test_a_ged_forgotten_while_it_is_told_away_does_not_stay_away(tmp_path):
    """Otherwise its queued documents would wait for ever instead of being withdrawn."""
    mounts, ged = Mounts(), os.fsencode(tmp_path)
    mounts.expect(ged, ged)
    mounts._points[ged] = points = Interrupted(mounts._points[ged])
    points.meanwhile = lambda: mounts.forget(ged, ged)
    mounts.lost(ged, ged)
    points.other.join()
    assert mounts.away() == ()
