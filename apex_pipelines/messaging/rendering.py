"""Turns a mail type and its data into subject, HTML and plain text.

Each mail is written once (`templates/mails/<name>.j2`) from a handful of parts, and rendered twice: with the
HTML layout and parts (autoescaped) and with the plain-text ones. So the two never say different things.

Belongs here: rendering. Does not belong here: who gets a mail, when, or how it leaves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, TemplateError

from apex_pipelines.messaging.formatting import FILTERS, one_line
from apex_pipelines.messaging.mail_types import FOLDER, MailType, Stream

TEMPLATES = FOLDER / "templates"


class RenderError(ValueError):
    """A mail can't be rendered from the data that its event carries."""


@dataclass(frozen=True, slots=True)
class Content:
    """A rendered mail: one-line subject, a whole HTML document, and the plain-text part."""

    subject: str
    html: str
    text: str


class Renderer:
    """Renders mails; make one and keep it, because it holds the compiled templates.

    Parameters
    ----------
    site_url : str
        Address of the company's site, without a slash at its end; links start with it.
    """

    def __init__(self, site_url: str) -> None:
        self._site_url = site_url.rstrip("/")
        self._html = _environment(autoescape=True)
        self._text = _environment(autoescape=False)
        self._subjects: dict[str, Template] = {}

    def render(
        self, mail_type: MailType, data: Mapping[str, Any], *, name: str, unsubscribe_url: str | None = None
    ) -> Content:
        """Render one mail.

        Parameters
        ----------
        data : mapping
            The event's data; it must have what the type declares as required.
        name : str
            How the recipient is greeted.
        unsubscribe_url : str or None
            Needed by marketing mails, for the link in the footer; ignored for others.

        Raises
        ------
        MissingMailData
            If a required key is absent.
        RenderError
            If the data doesn't fit the template, or a marketing mail has no unsubscribe address.
        """
        mail_type.check_data(data)
        if mail_type.stream is Stream.MARKETING and not unsubscribe_url:
            raise RenderError(f"mail type {mail_type.name!r} is marketing and needs an unsubscribe address")
        context: dict[str, Any] = {
            **data,
            "name": one_line(name) or "there",
            "site_url": self._site_url,
            "audience": mail_type.audience.value,
            "unsubscribe_url": unsubscribe_url if mail_type.stream is Stream.MARKETING else None,
        }
        try:
            subject = one_line(self._subject(mail_type).render(context))
            context["subject"] = subject
            html = self._body(self._html, "html", mail_type, context)
            text = self._body(self._text, "txt", mail_type, context)
        except (TemplateError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
            # One event with odd data must fail by itself and not stop the queue.
            raise RenderError(f"mail type {mail_type.name!r} can't be rendered: {error}") from error
        return Content(subject=subject, html=html, text=re.sub(r"\n{3,}", "\n\n", text).strip() + "\n")

    def _subject(self, mail_type: MailType) -> Template:
        # Compiling costs more than rendering, and templates from text are not cached by Jinja.
        if mail_type.subject not in self._subjects:
            self._subjects[mail_type.subject] = self._text.from_string(mail_type.subject)
        return self._subjects[mail_type.subject]

    def _body(self, env: Environment, part: str, mail_type: MailType, context: dict[str, Any]) -> str:
        template = env.get_template(f"mails/{mail_type.template}.j2")
        return template.render({**context, "layout": f"layout.{part}.j2", "parts": f"parts.{part}.j2"})


def _environment(*, autoescape: bool) -> Environment:
    env = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=autoescape,  # noqa: S701 - the plain-text part must not be escaped
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update(FILTERS)
    return env
