"""Labels as users write them."""

import pytest

from i2i.data.labels import LabelSpace
from i2i.errors import UsageError

HAIR = LabelSpace(("Black", "Blond", "Male", "Young"), ("Black+Blond",))
DIGITS = LabelSpace(("0", "1", "2"), classes=True)  # folders may be called so


@pytest.mark.parametrize(
    ("space", "text", "label"),
    [
        (HAIR, "Young", (0, 0, 0, 1)),
        (HAIR, "Young, Blond", (0, 1, 0, 1)),
        (HAIR, "0,1,0,1", (0, 1, 0, 1)),
        (HAIR, "0,0,0,0", (0, 0, 0, 0)),
        (DIGITS, "1", (0, 1, 0)),
        (DIGITS, "0,0,1", (0, 0, 1)),
    ],
)
def test_names_and_values(space, text, label):
    assert space.parse(text) == label


@pytest.mark.parametrize(
    ("space", "text", "message"),
    [
        (HAIR, "Yuong", r"among Black, Blond, Male, Young, or a 0 or 1 for each of these 4, got Yuong .*mean Young\?"),
        (HAIR, "blond", r"got blond \(did you mean Blond\?\)"),
        (HAIR, "0,1,0", "each of these 4, got 0,1,0$"),
        (HAIR, "0,1,0,2", "got 0,1,0,2$"),
        (HAIR, "", "got $"),
        (HAIR, "Male,Black,Blond", "label must have at most one of Black, Blond, got Male,Black,Blond"),
        (HAIR, "1,1,0,0", "at most one of Black, Blond, got 1,1,0,0"),
        (DIGITS, "0,2", "label must have exactly one of 0, 1, 2, got 0,2"),
        (DIGITS, "0,0,0", "exactly one of 0, 1, 2, got 0,0,0"),
    ],
)
def test_mistakes(space, text, message):
    with pytest.raises(UsageError, match=message):
        space.parse(text)
