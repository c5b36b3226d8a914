"""The templates of the HTML pages: self-contained, nothing is fetched."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: Any) -> str:
    """A template of this package as text; every value is escaped unless it is ``Markup``."""
    # StrictUndefined: a name the template has wrong must not become an empty place on the page
    environment = Environment(
        loader=PackageLoader("steer_analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
