"""Who is flagged, and who of them is left alone so that the mail's effect can be measured.

Belongs here: decisions about one customer. Does not belong here: anything that reads or writes.
"""

from __future__ import annotations

from hashlib import blake2b

from apex_pipelines.platform.catalogue import thresholds


def holdout(customer_id: str, share: float) -> bool:
    """Is this customer kept out of the retention mail? The same answer for ever, whatever else happens.

    Raises
    ------
    ValueError
        If `share` is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the hold-out share must be between 0 and 1, received {share}")
    digest = blake2b(f"churn-retention:{customer_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < share


def flag_probability() -> float:
    """The probability above which a customer is flagged, which is also that of the at-risk segment."""
    return float(thresholds("segment")["churn_probability"][0])


def flagged(probability: float, threshold: float) -> bool:
    """Is the customer likely enough to leave to be flagged? Strictly above the threshold."""
    return probability > threshold
