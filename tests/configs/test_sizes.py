import pytest

from headwater.configs.sizes import bytes_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", 0), ("12", 12), ("200GB", 200 * 10**9), ("1.5 TB", 15 * 10**11), ("64MiB", 1 << 26), ("3 kb", 3000)],
)
def test_a_size_is_a_number_and_a_unit(text, expected):
    assert bytes_of(text) == expected


@pytest.mark.parametrize("text", ["GB", "2 GBit", "-1GB", "1e9", "two"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="no size"):
        bytes_of(text)
