"""What a row of the table of attacks reports through."""

from collections.abc import Callable

import pytest

Told = Callable[..., None]


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Told:
    """Takes what was seen: `told(control="0.99", defended="0 of 20")`.

    `control` is what the attack got with the defence off, `defended` with it on. A
    `table` (Markdown) with a `title` is printed below the rows.
    """

    def tell(
        control: object = None,
        defended: object = None,
        *,
        title: str = "",
        table: str = "",
    ) -> None:
        said = (("control", control), ("defended", defended))
        for key, text in said:
            if text is not None:
                request.node.user_properties.append((key, str(text)))
        if table:
            request.node.user_properties.append(("table", (title, table)))

    return tell
