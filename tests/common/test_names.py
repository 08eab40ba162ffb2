"""What guards names, hashes and ids takes them whole: no line break may follow."""

from typing import Annotated

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from client.policy import Digest as PolicyDigest
from common.certificates import SITE_NAME
from common.exchange import RUN_ID
from common.joining import SiteName
from common.parcel_file import Hash
from common.parts import Digest as PartDigest
from common.plan_section import Name
from common.receipt import Receipt

SEEN = Receipt.model_fields["hash"]
GUARDS = {
    "plan": (Name, "north-1"),
    "site": (SiteName, "north-1"),
    "policy": (PolicyDigest, 64 * "a"),
    "part": (PartDigest, 64 * "a"),
    "parcel": (Hash, 64 * "a"),
    "receipt": (Annotated[str, *SEEN.metadata], 64 * "a"),
    "run": (Annotated[str, Field(pattern=f"^{RUN_ID.pattern}$")], "run-1"),
}


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("odd", ["{}\n", "\n{}", "{}\r", "{}\x00", "{}\u2028", "{} "])
def test_a_guard_takes_the_whole_text_and_no_more(guard, odd):
    kind, sound = GUARDS[guard]
    assert TypeAdapter(kind).validate_python(sound) == sound
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(odd.format(sound))


@pytest.mark.parametrize("guard", [SITE_NAME, RUN_ID])
def test_an_expression_of_ours_is_for_whole_texts(guard):
    assert guard.fullmatch("north-1")
    assert not guard.fullmatch("north-1\n")
