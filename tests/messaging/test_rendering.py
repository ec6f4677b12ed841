"""Every mail type renders, says the same in HTML and text, and survives hostile data."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest

from apex_pipelines.messaging.formatting import dates_in_words, grouped, money, number, web_address
from apex_pipelines.messaging.mail_types import (
    Audience,
    MissingMailData,
    OnRepeat,
    Stream,
    UnknownMailType,
    mail_type,
    mail_types,
    sample_data,
)
from apex_pipelines.messaging.rendering import TEMPLATES, Renderer, RenderError

HOSTILE = "<script>alert('x')</script>\"'&{{ 7*191 }}\r\nBcc: victim@example.com"
UNSUBSCRIBE = "https://apexmediation.com/unsubscribe?token=t"
VOID = {"meta", "br", "img", "hr", "link", "input"}


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer("https://apexmediation.com/")


class _Balance(HTMLParser):
    """Notes tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _hostile(value: Any) -> Any:
    """Sample data with every free text replaced; numbers, dates and addresses must keep their form."""
    if isinstance(value, dict):
        return {key: _hostile(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_hostile(part) for part in value]
    if isinstance(value, str) and not value[:1].isdigit() and value not in ("usd", "count", "GB"):
        return value if value.startswith("https://") else HOSTILE
    return value


@pytest.mark.parametrize("name", sorted(mail_types()))
def test_renders_as_html_and_text_from_its_required_data_alone(renderer: Renderer, name: str) -> None:
    kind = mail_type(name)
    data = {key: value for key, value in sample_data(name).items() if key in kind.required}
    content = renderer.render(kind, data, name="Ada", unsubscribe_url=UNSUBSCRIBE)

    balance = _Balance()
    balance.feed(content.html)
    assert balance.open == []
    assert content.subject
    assert "\n" not in content.subject
    assert "{{" not in content.html + content.text
    assert "<" not in content.text.replace("<https", "")
    assert "prefers-color-scheme: dark" in content.html
    if kind.audience is Audience.CUSTOMER:
        assert "Ada" in content.html
        assert "Ada" in content.text


@pytest.mark.parametrize("name", sorted(mail_types()))
def test_escapes_hostile_data_everywhere(renderer: Renderer, name: str) -> None:
    content = renderer.render(
        mail_type(name), _hostile(sample_data(name)), name=HOSTILE, unsubscribe_url=UNSUBSCRIBE
    )

    balance = _Balance()
    balance.feed(content.html)
    assert balance.open == []
    assert "script" not in balance.tags
    assert "<script" not in content.html
    assert "1337" not in content.subject + content.html + content.text  # data is never taken for a template
    assert not {"\r", "\n"} & set(content.subject)


@pytest.mark.parametrize(
    ("name", "key"), [(k.name, key) for k in mail_types().values() for key in k.required]
)
def test_names_the_missing_key(renderer: Renderer, name: str, key: str) -> None:
    data = sample_data(name)
    del data[key]
    with pytest.raises(MissingMailData, match=key):
        renderer.render(mail_type(name), data, name="Ada", unsubscribe_url=UNSUBSCRIBE)


def test_marketing_mail_has_an_unsubscribe_link_and_transactional_mail_has_none(renderer: Renderer) -> None:
    for kind in mail_types().values():
        content = renderer.render(kind, sample_data(kind.name), name="Ada", unsubscribe_url=UNSUBSCRIBE)
        assert (UNSUBSCRIBE in content.html) == (kind.stream is Stream.MARKETING)
        last_line = content.text.splitlines()[-1]
        assert (last_line.endswith(UNSUBSCRIBE)) == (kind.stream is Stream.MARKETING)
        assert not content.text.startswith("\n")


def test_marketing_mail_without_unsubscribe_address_is_refused(renderer: Renderer) -> None:
    with pytest.raises(RenderError, match="unsubscribe"):
        renderer.render(mail_type("power_user"), sample_data("power_user"), name="Ada")


def test_links_to_anything_but_the_web_are_refused(renderer: Renderer) -> None:
    data = sample_data("payment_failed") | {"update_url": "javascript:alert(1)"}
    with pytest.raises(RenderError, match="javascript"):
        renderer.render(mail_type("payment_failed"), data, name="Ada")


def test_data_of_the_wrong_kind_is_a_render_error(renderer: Renderer) -> None:
    data = sample_data("payment_failed") | {"amount_cents": "a lot", "retry_dates": 7}
    with pytest.raises(RenderError, match="payment_failed"):
        renderer.render(mail_type("payment_failed"), data, name="Ada")


def test_data_cannot_take_the_place_of_the_layout_or_the_name(renderer: Renderer) -> None:
    data = sample_data("welcome") | {
        "layout": "../secrets",
        "name": "Mallory",
        "site_url": "https://evil.example",
    }
    content = renderer.render(mail_type("welcome"), data, name="Ada")
    assert "Mallory" not in content.html
    assert "evil.example" not in content.html + content.text


def test_figures_of_the_cause_are_in_both_parts(renderer: Renderer) -> None:
    content = renderer.render(mail_type("usage_alert_110"), sample_data("usage_alert_110"), name="Ada")
    for part in (content.html, content.text):
        assert "1,131,870" in part
        assert "1,000,000" in part
        assert "30 June 2026" in part


def test_welcome_without_trial_says_that_the_plan_is_active(renderer: Renderer) -> None:
    with_trial = renderer.render(mail_type("welcome"), sample_data("welcome"), name="Ada")
    without = renderer.render(
        mail_type("welcome"),
        {"plan_name": "Indie", "trial_days": 0},
        name="Ada",
    )
    assert "Your Indie plan is free for 14 days, until 15 June 2026; we" in " ".join(with_trial.text.split())
    assert "Your Indie plan is active." in " ".join(without.text.split())
    assert "Your <strong>Indie</strong> plan is active." in " ".join(without.html.split())
    assert "free" not in without.subject + without.text
    assert "0 days" not in without.subject + without.html


def test_retention_mail_without_figures_claims_to_see_nothing(renderer: Renderer) -> None:
    kind = mail_type("churn_risk")
    fell = renderer.render(kind, sample_data("churn_risk"), name="Ada", unsubscribe_url=UNSUBSCRIBE)
    other = renderer.render(kind, {"figures": []}, name="Ada", unsubscribe_url=UNSUBSCRIBE)
    for with_figures, without in ((fell.html, other.html), (fell.text, other.text)):
        assert "what we see:" in " ".join(with_figures.split())
        assert "210,400" in with_figures
        assert "what we see" not in " ".join(without.split())
        assert "last 30 days" not in without


def test_upgrade_offer_writes_dates_in_words(renderer: Renderer) -> None:
    content = renderer.render(
        mail_type("upgrade_offer"), sample_data("upgrade_offer"), name="Ada", unsubscribe_url=UNSUBSCRIBE
    )
    for part in (content.html, content.text):
        assert "874,310 of 1,000,000 included impressions used in the period from 1 June 2026" in " ".join(
            part.split()
        )


def test_unknown_type_is_named() -> None:
    with pytest.raises(UnknownMailType, match="wellcome"):
        mail_type("wellcome")


def test_money_mail_goes_first_and_only_operator_mail_may_repeat() -> None:
    money_mail = {"payment_failed", "payment_retry", "payment_succeeded", "suspended"}
    assert {kind.name for kind in mail_types().values() if kind.priority <= 10} == money_mail
    for kind in mail_types().values():
        assert kind.on_repeat is not OnRepeat.ALLOW or kind.audience is Audience.OPERATOR


def test_every_template_belongs_to_a_type() -> None:
    used = {kind.template for kind in mail_types().values()}
    assert {path.stem for path in (TEMPLATES / "mails").glob("*.j2")} == used


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (number("1234567.50"), "1,234,567.5"),
        (number(100), "100"),
        (money(123456, "usd"), "$1,234.56"),
        (money(-5, "eur"), "-€0.05"),
        (money(1200, "jpy"), "1,200 JPY"),
        (money(1200, "chf"), "12.00 CHF"),
        (grouped("120874 since 2026-06-01, 0.1234567"), "120,874 since 2026-06-01, 0.1234567"),
        (dates_in_words("120874 since 2026-06-01, 12026-06-012"), "120874 since 1 June 2026, 12026-06-012"),
    ],
)
def test_formats(written: str, expected: str) -> None:
    assert written == expected


@pytest.mark.parametrize("url", ["javascript:alert(1)", "https://a b", "//x", "", 'https://x"onclick="y'])
def test_bad_addresses(url: str) -> None:
    with pytest.raises(ValueError, match="http"):
        web_address(url)
