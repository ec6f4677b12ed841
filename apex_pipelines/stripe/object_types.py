"""Which of Stripe's objects we read, and where Stripe keeps them.

Belongs here: one row a type. Does not belong here: what their fields mean
(`dbt_project/models/staging/stripe`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ObjectType:
    """One type of objects.

    Attributes
    ----------
    name : str
        As Stripe names it in the field `object`.
    path : str
        Of its list; with `{parent}` where each customer has a list of its own.
    title : str
        Plural, for people and for the asset's name.
    filters : mapping of str to str
        What the list must be asked, so that it leaves nothing out.
    nested : str
        Field that holds a list of other objects, which Stripe may cut short.
    has_created_filter : bool
        Whether the list can be asked for what was created until an instant.
    can_vanish : bool
        Whether Stripe forgets an object that is deleted; others stay, or tell that they were.
    """

    name: str
    path: str
    title: str
    filters: Mapping[str, str] = field(default_factory=dict)
    nested: str = ""
    has_created_filter: bool = True
    can_vanish: bool = False

    @property
    def is_per_customer(self) -> bool:
        return "{parent}" in self.path

    def path_of(self, object_id: str, parent: str | None = None) -> str:
        """Where one object is."""
        if self.name == "payment_method":  # listed by customer, but with an address of its own
            return f"/v1/payment_methods/{object_id}"
        return f"{self.path.format(parent=parent)}/{object_id}"


# In the order in which they are read: whose customer it is, and what was paid, is known before what needs it.
OBJECT_TYPES: Mapping[str, ObjectType] = {
    kind.name: kind
    for kind in (
        ObjectType("product", "/v1/products", "products", can_vanish=True),
        ObjectType("price", "/v1/prices", "prices", can_vanish=True),
        ObjectType("coupon", "/v1/coupons", "coupons", can_vanish=True),
        ObjectType("billing.meter", "/v1/billing/meters", "meters", has_created_filter=False),
        ObjectType("customer", "/v1/customers", "customers", can_vanish=True),
        ObjectType(
            "payment_method",
            "/v1/customers/{parent}/payment_methods",
            "payment_methods",
            has_created_filter=False,
            can_vanish=True,
        ),
        ObjectType(
            "customer_balance_transaction",
            "/v1/customers/{parent}/balance_transactions",
            "balance_transactions",
            has_created_filter=False,
        ),
        ObjectType(
            "billing.credit_grant", "/v1/billing/credit_grants", "credit_grants", has_created_filter=False
        ),
        ObjectType("charge", "/v1/charges", "charges"),
        ObjectType("refund", "/v1/refunds", "refunds"),
        ObjectType("dispute", "/v1/disputes", "disputes"),
        ObjectType("invoice", "/v1/invoices", "invoices", nested="lines", can_vanish=True),
        # Unless it is told otherwise, Stripe leaves out those that have ended.
        ObjectType(
            "subscription", "/v1/subscriptions", "subscriptions", filters={"status": "all"}, nested="items"
        ),
    )
}
