"""The templates of the HTML pages: self-contained, nothing is fetched."""

import base64
import hashlib
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_POLICY = "@CONTENT-SECURITY-POLICY@"


def render(template: str, **values: Any) -> str:
    """A template of this package as text; every value is escaped unless it is ``Markup``.

    The page's content security policy allows exactly the style and script the template has, by their hashes: text of a
    run that got through as markup could neither load nor run anything.
    """
    # StrictUndefined: a name the template has wrong must not become an empty place on the page
    environment = Environment(
        loader=PackageLoader("steer_analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(**values)
    return page.replace(_POLICY, _policy(page), 1)


def _policy(page: str) -> str:
    """Nothing from anywhere, but the page's own style and script."""
    allowed = {kind: " ".join(_hashes(page, kind)) or "'none'" for kind in ("style", "script")}
    return (
        f"default-src 'none'; style-src {allowed['style']}; script-src {allowed['script']}; "
        "base-uri 'none'; form-action 'none'"
    )


def _hashes(page: str, tag: str) -> list[str]:
    """Of every element without attributes: those the template writes; JSON for the script is no script."""
    found = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in found]
