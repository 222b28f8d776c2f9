"""Many ids in pages."""

from __future__ import annotations

import pytest

from dftfactory.id_pages import IDS_IN_ONE_QUERY, id_pages


@pytest.mark.parametrize("number", [0, 1, IDS_IN_ONE_QUERY, IDS_IN_ONE_QUERY + 1, 5 * IDS_IN_ONE_QUERY])
def test_every_id_is_in_one_page_and_no_page_is_longer_than_a_query(number: int) -> None:
    pages = list(id_pages(iter(range(number))))
    assert [each for page in pages for each in page] == list(range(number))
    assert all(0 < len(page) <= IDS_IN_ONE_QUERY for page in pages)
