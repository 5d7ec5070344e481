"""From a log line to a mail for the person who must act."""

from bridged.alerts.alerting import Alerting
from bridged.alerts.refused import refused_at_start

__all__ = ["Alerting", "refused_at_start"]
