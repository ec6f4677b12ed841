"""Payments that their card's holder disputes.

Belongs here: `/v1/disputes`. Does not belong here: refunds.
"""

from __future__ import annotations

from apex_pipelines.sandbox.stripe.account import Account
from apex_pipelines.sandbox.stripe.errors import invalid
from apex_pipelines.sandbox.stripe.listing import Page, page
from apex_pipelines.sandbox.stripe.parameters import Flag, Given, Range, Text, TextMap, merged_metadata
from apex_pipelines.sandbox.stripe.routes import Routes
from apex_pipelines.sandbox.stripe.store import Object

routes = Routes()

_EVIDENCE = (
    "access_activity_log", "billing_address", "cancellation_policy", "cancellation_policy_disclosure",
    "cancellation_rebuttal", "customer_communication", "customer_email_address", "customer_name",
    "customer_purchase_ip", "customer_signature", "duplicate_charge_documentation",
    "duplicate_charge_explanation", "duplicate_charge_id", "product_description", "receipt", "refund_policy",
    "refund_policy_disclosure", "refund_refusal_explanation", "service_date", "service_documentation",
    "shipping_address", "shipping_carrier", "shipping_date", "shipping_documentation",
    "shipping_tracking_number", "uncategorized_file", "uncategorized_text",
)  # fmt: skip
_ANSWER_SECONDS = 9 * 86_400


def open_dispute(account: Account, charge: Object, reason: str) -> Object:
    """Let the holder of the card dispute a charge, for its whole amount."""
    body: Object = {
        "id": account.new_id("dp"),
        "object": "dispute",
        "amount": charge["amount"],
        "balance_transactions": [],
        "charge": charge["id"],
        "created": account.now,
        "currency": charge["currency"],
        "enhanced_eligibility_types": [],
        "evidence": {**dict.fromkeys(_EVIDENCE), "enhanced_evidence": {}},
        "evidence_details": {
            "due_by": account.now + _ANSWER_SECONDS,
            "enhanced_eligibility": {},
            "has_evidence": False,
            "past_due": False,
            "submission_count": 0,
        },
        "is_charge_refundable": False,
        "livemode": False,
        "metadata": {},
        "payment_intent": charge["payment_intent"],
        "payment_method_details": {
            "card": {
                "brand": charge["payment_method_details"]["card"]["brand"],
                "case_type": "chargeback",
                "network_reason_code": "10.4",
            },
            "type": "card",
        },
        "reason": reason,
        "status": "needs_response",
    }
    account.change(charge, disputed=True)
    return account.create(body, "charge.dispute.created")


@routes.get("/v1/disputes/{dispute}")
def retrieve(account: Account, given: Given, dispute: str) -> Object:
    return account.need("dispute", dispute)


@routes.post("/v1/disputes/{dispute}", metadata=TextMap(), submit=Flag(), evidence=TextMap())
def update(account: Account, given: Given, dispute: str) -> Object:
    """Keep evidence; in test mode `winning_evidence` or `losing_evidence` as text decides it at once."""
    body = account.need("dispute", dispute)
    evidence = given.get("evidence") or {}
    changed = account.change(
        body,
        "charge.dispute.updated",
        evidence={**body["evidence"], **evidence},
        metadata=merged_metadata(body["metadata"], given),
    )
    outcome = {"winning_evidence": "won", "losing_evidence": "lost"}.get(
        evidence.get("uncategorized_text", "")
    )
    if outcome is None or given.get("submit") is False:
        return changed
    return account.change(changed, "charge.dispute.closed", status=outcome)


@routes.post("/v1/disputes/{dispute}/close")
def close(account: Account, given: Given, dispute: str) -> Object:
    body = account.need("dispute", dispute)
    if body["status"] in ("won", "lost"):
        raise invalid(f"The dispute {dispute} is closed already.")
    return account.change(body, "charge.dispute.closed", status="lost")


@routes.list("/v1/disputes", charge=Text(), created=Range(), payment_intent=Text())
def list_all(account: Account, given: Given) -> Page:
    where = {name: given.get(name) for name in ("charge", "payment_intent")}
    return page(account, "dispute", "/v1/disputes", given, where)
