"""Churn: who is likely to leave, and whom it pays to write to.

Belongs here: reading the churn marts, running `ml` on them, storing scores, the hold-out.
Does not belong here: the model itself (`ml`), mails (`messaging`), the graph (`defs.churn`).
"""
