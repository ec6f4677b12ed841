"""What is for sale: products, prices, coupons.

Belongs here: `/v1/products`, `/v1/prices`, `/v1/coupons`. Does not belong here: what a quantity costs
(`pricing.py`).
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from apex_pipelines.sandbox.stripe.account import Account
from apex_pipelines.sandbox.stripe.errors import invalid
from apex_pipelines.sandbox.stripe.listing import Page, page
from apex_pipelines.sandbox.stripe.parameters import (
    CURRENCY,
    Array,
    Flag,
    Given,
    Group,
    Integer,
    Number,
    Range,
    Required,
    Text,
    TextMap,
    merged_metadata,
)
from apex_pipelines.sandbox.stripe.routes import Routes
from apex_pipelines.sandbox.stripe.store import Object

routes = Routes()

RECURRING = Group(
    interval=Required(Text(choices=("day", "week", "month", "year"))),
    interval_count=Integer(minimum=1),
    meter=Text(),
    usage_type=Text(choices=("licensed", "metered")),
)
_TIER = Group(
    flat_amount=Integer(),
    flat_amount_decimal=Number(),
    unit_amount=Integer(),
    unit_amount_decimal=Number(),
    up_to=Required(Integer(minimum=1, words=("inf",))),
)


def plain_changes(before: Object, given: Given, *names: str) -> Object:
    """The given values of fields that are stored as they come, and the metadata."""
    changes: dict[str, Any] = {name: given[name] for name in names if name in given}
    return {**changes, "metadata": merged_metadata(before["metadata"], given)}


# Products.

_PRODUCT = ("active", "description", "name", "statement_descriptor", "unit_label", "url")
_PRODUCT_FIELDS = Group(
    active=Flag(),
    description=Text(unset=True),
    metadata=TextMap(),
    statement_descriptor=Text(22),
    unit_label=Text(unset=True),
    url=Text(unset=True),
)


@routes.post("/v1/products", _PRODUCT_FIELDS, id=Text(), name=Required(Text()))
def create_product(account: Account, given: Given) -> Object:
    product_id = given.get("id") or account.new_id("prod")
    if account.store.get("product", product_id) is not None:
        raise invalid("Product already exists.", "id", "resource_already_exists")
    blank: Object = {
        "id": product_id,
        "object": "product",
        "active": True,
        "created": account.now,
        "default_price": None,
        "description": None,
        "images": [],
        "livemode": False,
        "marketing_features": [],
        "metadata": {},
        "name": given["name"],
        "package_dimensions": None,
        "shippable": None,
        "statement_descriptor": None,
        "tax_code": None,
        "type": "service",
        "unit_label": None,
        "updated": account.now,
        "url": None,
    }
    return account.create({**blank, **plain_changes(blank, given, *_PRODUCT)})


@routes.get("/v1/products/{product}")
def retrieve_product(account: Account, given: Given, product: str) -> Object:
    return account.need("product", product, deleted=True)


@routes.post("/v1/products/{product}", _PRODUCT_FIELDS, name=Text(), default_price=Text())
def update_product(account: Account, given: Given, product: str) -> Object:
    body = account.need("product", product)
    if "default_price" in given:
        account.need("price", given["default_price"], "default_price")
    changes = plain_changes(body, given, *_PRODUCT, "default_price")
    return account.change(body, **changes, updated=account.now)


@routes.delete("/v1/products/{product}")
def delete_product(account: Account, given: Given, product: str) -> Object:
    body = account.need("product", product)
    if account.store.bodies("price", {"product": product}, limit=1):
        raise invalid("This product cannot be deleted because it has one or more user-created prices.", "id")
    return account.delete(body)


@routes.list("/v1/products", active=Flag(), created=Range(), ids=Array(Text()))
def list_products(account: Account, given: Given) -> Page:
    if "ids" in given:
        found = [account.store.get("product", product_id) for product_id in given["ids"]]
        return Page.of(
            "product", "/v1/products", [body for body in found if body and not body.get("deleted")]
        )
    return page(account, "product", "/v1/products", given, {"active": given.get("active")})


# Prices.

_PRICE_FIELDS = Group(
    active=Flag(),
    lookup_key=Text(200),
    metadata=TextMap(),
    nickname=Text(unset=True),
    transfer_lookup_key=Flag(),
)
_NEW_PRICE = _PRICE_FIELDS.plus(
    billing_scheme=Text(choices=("per_unit", "tiered")),
    currency=Required(CURRENCY),
    product=Text(),
    product_data=Group(
        id=Text(), name=Required(Text()), metadata=TextMap(), unit_label=Text(), statement_descriptor=Text(22)
    ),
    recurring=RECURRING,
    tax_behavior=Text(choices=("exclusive", "inclusive", "unspecified")),
    tiers=Array(_TIER),
    tiers_mode=Text(choices=("graduated", "volume")),
    unit_amount=Integer(),
    unit_amount_decimal=Number(),
)


@routes.post("/v1/prices", _NEW_PRICE)
def create_price(account: Account, given: Given) -> Object:
    if "product_data" in given:
        product_id = create_product(account, given["product_data"])["id"]
    elif "product" in given:
        product_id = account.need("product", given["product"], "product")["id"]
    else:
        raise invalid("You must specify either `product` or `product_data`.", "product", "parameter_missing")
    lookup_key = _free_lookup_key(account, given)
    amount, exact = _amounts(given)
    body: Object = {
        "id": account.new_id("price"),
        "object": "price",
        "active": given.get("active", True),
        "billing_scheme": given.get("billing_scheme", "per_unit"),
        "created": account.now,
        "currency": given["currency"],
        "custom_unit_amount": None,
        "livemode": False,
        "lookup_key": lookup_key,
        "metadata": merged_metadata({}, given),
        "nickname": given.get("nickname"),
        "product": product_id,
        "recurring": _recurring(account, given),
        "tax_behavior": given.get("tax_behavior", "unspecified"),
        "tiers_mode": given.get("tiers_mode"),
        "transform_quantity": None,
        "type": "recurring" if "recurring" in given else "one_time",
        "unit_amount": amount,
        "unit_amount_decimal": exact,
        **_tiers(given),
    }
    return account.create(body)


@routes.get("/v1/prices/{price}")
def retrieve_price(account: Account, given: Given, price: str) -> Object:
    return account.need("price", price)


@routes.post("/v1/prices/{price}", _PRICE_FIELDS)
def update_price(account: Account, given: Given, price: str) -> Object:
    body = account.need("price", price)
    changes = plain_changes(body, given, "active", "nickname")
    if "lookup_key" in given and given["lookup_key"] != body["lookup_key"]:
        changes["lookup_key"] = _free_lookup_key(account, given)
    return account.change(body, **changes)


@routes.list(
    "/v1/prices",
    active=Flag(),
    created=Range(),
    currency=CURRENCY,
    lookup_keys=Array(Text()),
    product=Text(),
    recurring=Group(interval=Text(), meter=Text(), usage_type=Text()),
    type=Text(choices=("one_time", "recurring")),
)
def list_prices(account: Account, given: Given) -> Page:
    recurring = given.get("recurring", {})
    where = {
        "active": given.get("active"),
        "currency": given.get("currency"),
        "lookup_key": given.get("lookup_keys"),
        "product": given.get("product"),
        "type": given.get("type"),
        **{f"recurring_{name}": value for name, value in recurring.items()},
    }
    return page(account, "price", "/v1/prices", given, where)


def _free_lookup_key(account: Account, given: Given) -> str | None:
    key: str | None = given.get("lookup_key")
    if key is None:
        return None
    for other in account.store.every("price", lookup_key=key):
        if not given.get("transfer_lookup_key"):
            raise invalid(
                f"A price (`{other['id']}`) already uses that lookup key.",
                "lookup_key",
                "resource_already_exists",
            )
        account.change(other, lookup_key=None)
    return key


def _amounts(given: Given, name: str = "unit_amount") -> tuple[int | None, str | None]:
    """A price as whole cents, when it is, and as the exact decimal of cents."""
    if name in given and f"{name}_decimal" in given:
        raise invalid(f"You may only specify one of these parameters: {name}, {name}_decimal.", name)
    if f"{name}_decimal" in given:
        exact = Decimal(given[f"{name}_decimal"])
        return (int(exact) if exact == int(exact) else None), format(exact.normalize(), "f")
    amount = given.get(name)
    return amount, (None if amount is None else str(amount))


def _recurring(account: Account, given: Given) -> Object | None:
    if "recurring" not in given:
        return None
    recurring = given["recurring"]
    usage_type = recurring.get("usage_type", "licensed")
    meter = recurring.get("meter")
    if meter is not None:
        account.need("billing.meter", meter, "recurring[meter]")
    if (usage_type == "metered") != (meter is not None):
        raise invalid("A price with `usage_type=metered` must name its meter, and no other may.", "recurring")
    return {
        "interval": recurring["interval"],
        "interval_count": recurring.get("interval_count", 1),
        "meter": meter,
        "trial_period_days": None,
        "usage_type": usage_type,
    }


def _tiers(given: Given) -> Object:
    if given.get("billing_scheme") != "tiered":
        if "tiers" in given or "tiers_mode" in given:
            raise invalid("`tiers` needs `billing_scheme=tiered`.", "tiers")
        if "unit_amount" not in given and "unit_amount_decimal" not in given:
            raise invalid("Missing required param: unit_amount.", "unit_amount", "parameter_missing")
        return {}
    if not given.get("tiers") or "tiers_mode" not in given:
        raise invalid("Missing required param: tiers.", "tiers", "parameter_missing")
    tiers = []
    bounds = [tier["up_to"] for tier in given["tiers"]]
    if bounds[-1] != "inf" or "inf" in bounds[:-1] or bounds[:-1] != sorted(set(bounds[:-1])):
        raise invalid("Tiers must have rising `up_to`, the last one `inf`.", "tiers")
    for tier in given["tiers"]:
        flat, flat_exact = _amounts(tier, "flat_amount")
        unit, unit_exact = _amounts(tier)
        tiers.append(
            {
                "flat_amount": flat,
                "flat_amount_decimal": flat_exact,
                "unit_amount": unit,
                "unit_amount_decimal": unit_exact,
                "up_to": None if tier["up_to"] == "inf" else tier["up_to"],
            }
        )
    return {"tiers": tiers}


# Coupons.


@routes.post(
    "/v1/coupons",
    amount_off=Integer(minimum=1),
    currency=CURRENCY,
    duration=Text(choices=("once", "repeating", "forever")),
    duration_in_months=Integer(minimum=1),
    id=Text(),
    max_redemptions=Integer(minimum=1),
    metadata=TextMap(),
    name=Text(40),
    percent_off=Number(minimum=0),
    redeem_by=Integer(),
)
def create_coupon(account: Account, given: Given) -> Object:
    if ("amount_off" in given) == ("percent_off" in given):
        raise invalid("You must pass either percent_off or amount_off.", "percent_off")
    if "amount_off" in given and "currency" not in given:
        raise invalid("You must pass currency when passing amount_off", "currency", "parameter_missing")
    coupon_id = given.get("id") or account.new_id("coupon").removeprefix("coupon_")[:8]
    if account.store.get("coupon", coupon_id) is not None:
        raise invalid("Coupon already exists.", "id", "resource_already_exists")
    body: Object = {
        "id": coupon_id,
        "object": "coupon",
        "amount_off": given.get("amount_off"),
        "created": account.now,
        "currency": given.get("currency"),
        "duration": given.get("duration", "once"),
        "duration_in_months": given.get("duration_in_months"),
        "livemode": False,
        "max_redemptions": given.get("max_redemptions"),
        "metadata": merged_metadata({}, given),
        "name": given.get("name"),
        "percent_off": None if "percent_off" not in given else float(given["percent_off"]),
        "redeem_by": given.get("redeem_by"),
        "times_redeemed": 0,
        "valid": True,
    }
    return account.create(body)


@routes.get("/v1/coupons/{coupon}")
def retrieve_coupon(account: Account, given: Given, coupon: str) -> Object:
    return account.need("coupon", coupon)


@routes.post("/v1/coupons/{coupon}", metadata=TextMap(), name=Text(40))
def update_coupon(account: Account, given: Given, coupon: str) -> Object:
    body = account.need("coupon", coupon)
    return account.change(body, **plain_changes(body, given, "name"))


@routes.delete("/v1/coupons/{coupon}")
def delete_coupon(account: Account, given: Given, coupon: str) -> Object:
    return account.delete(account.need("coupon", coupon))


@routes.list("/v1/coupons", created=Range())
def list_coupons(account: Account, given: Given) -> Page:
    return page(account, "coupon", "/v1/coupons", given)
