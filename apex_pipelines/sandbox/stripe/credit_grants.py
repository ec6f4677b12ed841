"""Credit that is granted to customers beforehand.

Belongs here: granting and listing it. Does not belong here: taking it from invoices, which nothing here
needs.
"""

from __future__ import annotations

from apex_pipelines.sandbox.stripe import customers
from apex_pipelines.sandbox.stripe.account import Account
from apex_pipelines.sandbox.stripe.listing import Page, page
from apex_pipelines.sandbox.stripe.parameters import (
    CURRENCY,
    Given,
    Group,
    Integer,
    Required,
    Text,
    TextMap,
    merged_metadata,
)
from apex_pipelines.sandbox.stripe.routes import Routes
from apex_pipelines.sandbox.stripe.store import Object

routes = Routes()
_PATH = "/v1/billing/credit_grants"


@routes.post(
    _PATH,
    customer=Required(Text()),
    amount=Required(
        Group(
            type=Required(Text(choices=("monetary",))),
            monetary=Required(Group(currency=Required(CURRENCY), value=Required(Integer()))),
        )
    ),
    applicability_config=Required(Group(scope=Required(Group(price_type=Text(choices=("metered",)))))),
    category=Text(choices=("paid", "promotional")),
    effective_at=Integer(),
    expires_at=Integer(),
    metadata=TextMap(),
    name=Text(),
)
def create(account: Account, given: Given) -> Object:
    customer = customers.need(account, given["customer"], "customer")
    return account.create(
        {
            "id": account.new_id("credgr"),
            "object": "billing.credit_grant",
            "amount": given["amount"],
            "applicability_config": given["applicability_config"],
            "category": given.get("category", "paid"),
            "created": account.now,
            "customer": customer["id"],
            "customer_account": None,
            "effective_at": given.get("effective_at", account.now),
            "expires_at": given.get("expires_at"),
            "livemode": False,
            "metadata": merged_metadata({}, given),
            "name": given.get("name"),
            "priority": 50,
            "test_clock": customer["test_clock"],
            "updated": account.now,
            "voided_at": None,
        }
    )


@routes.get(_PATH + "/{grant}")
def retrieve(account: Account, given: Given, grant: str) -> Object:
    return account.need("billing.credit_grant", grant)


@routes.list(_PATH, customer=Text())
def list_all(account: Account, given: Given) -> Page:
    return page(account, "billing.credit_grant", _PATH, given, {"customer": given.get("customer")})
