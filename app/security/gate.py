"""What the door knows of those who come."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.security.keys import Key, KeyRing
from app.security.limits import Ledger, RateLimit


@dataclass(frozen=True, slots=True)
class Gate:
    """Keys and rate limits of one running service; made by `app.wiring.open_gate`."""

    keys: KeyRing | None
    ledger: Ledger
    rate_limits: Sequence[RateLimit]  # of those who have none of their own

    def limits_of(self, key: Key | None) -> Sequence[RateLimit]:
        """Return the limits that hold for `key`, or for a caller without one."""
        return self.rate_limits if key is None or key.rate_limits is None else key.rate_limits
