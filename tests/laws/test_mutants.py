"""The list of mutants belongs to the package as it is; ``mutants.py`` runs them."""

from __future__ import annotations

import ast

import pytest
from mutant_list import MUTANTS
from mutants import ROOT, find_tests, place


def test_mutants_have_different_names_and_their_number_is_documented():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert f"breaks {len(MUTANTS)} lines" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_a_line_of_the_package_broken(mutant):
    assert mutant.replacement != mutant.snippet
    ast.parse(place(mutant.snippet).read_text().replace(mutant.snippet, mutant.replacement))
    assert (ROOT / find_tests(mutant.tests[0])).is_file()


def test_a_snippet_must_occur_once():
    for snippet, times in (("no line of the package", 0), ("from __future__ import annotations", r"\d+")):
        with pytest.raises(LookupError, match=rf"must occur exactly once in itergp/. Got {times} times"):
            place(snippet)
