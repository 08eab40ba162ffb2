"""What a table of the plan is, and the constrained numbers its keys are made of."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,31}$"
"""Of a whole text: `re.fullmatch`, as Python's `$` lets a line break follow."""
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
"""Lower case letters, digits, - and _; at most 32, safe as a folder name."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A table of the plan: frozen, strict, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)
