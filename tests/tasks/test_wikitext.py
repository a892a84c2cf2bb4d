import pytest

from fastffn_cli.tasks.wikitext import detokenize, looks_like_wikitext
from tests.fleetx_models import FIXTURES_DIR


def test_the_text_of_the_original_detokenizer():
    wiki = (FIXTURES_DIR / "wiki.txt").read_text(encoding="utf-8")
    expected = (FIXTURES_DIR / "wiki_detokenized.txt").read_text(encoding="utf-8")
    assert detokenize(wiki) == expected


@pytest.mark.parametrize(
    ("spaced", "written"),
    [
        ("two @-@ part", "two-part"),
        ("1 @,@ 000 @.@ 5", "1,000.5"),
        ("so ; and : yes , no . or ! then ?", "so; and: yes, no. or! then ?"),
        ("( a ) [ b ] { c }", "(a) [b] {c}"),
        ('a " quoted " word', 'a "quoted" word'),
        ("' s ' e", "'s' e"),
        (" \n = = Early life = = \n ", "\n== Early life ==\n"),
        ("20 ° C", "20°C"),
        ("a N b", "a 1 b"),
        ("a ( b \\ ) c", "a (b \\) c"),
    ],
)
def test_rules(spaced, written):
    assert detokenize(spaced) == written


@pytest.mark.parametrize("text", [" = Robert Boulter = \n", "a @-@ b", "1 @,@ 000"])
def test_wikitext_is_recognised(text):
    assert looks_like_wikitext("some words \n" + text)


@pytest.mark.parametrize("text", ["x = y", "= Title =\n", "mail me @ - @ home", "", "a == b"])
def test_other_text_is_not_wikitext(text):
    assert not looks_like_wikitext(text)
