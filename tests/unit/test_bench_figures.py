"""What the benchmarks say of their figures, and the texts that they take from manual pages."""

import pytest

from tests.bench.corpus import paragraphs_of_page
from tests.bench.figures import FIGURES, Bound, Figure

PAGE = r"""
.\" a comment
.TH OPEN 2
.SH NAME
open \- open a \fIfile\fP
.SH DESCRIPTION
The
.BR open (2)
call opens the file; the \(aqflags\(aq say
.I how
it is done.\" rest
.PP
.nf
int open(const char *pathname);
.fi
.PP
Sie liefert \(lqminus eins\(rq\&.
"""


def test_no_figure_has_two_meanings() -> None:
    keys = [figure.key for figure in FIGURES]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("bound", "asked", "value", "verdict"),
    [
        (Bound.AT_LEAST, 0.7, 0.7, "ok"),
        (Bound.AT_LEAST, 0.8, 0.6, "25 % short"),
        (Bound.AT_MOST, 1.5, 1.4, "ok"),
        (Bound.AT_MOST, 1.5, 2.0, "25 % short"),
        (Bound.AT_MOST, 0, 0, "ok"),
        (Bound.AT_MOST, 0, 3, "short"),
    ],
)
def test_a_verdict_says_by_how_much_a_figure_falls_short(
    bound: Bound, asked: float, value: float, verdict: str
) -> None:
    assert Figure("key", "measurement", "how", asked, bound).verdict(value) == verdict


def test_a_manual_page_gives_running_text_without_markup() -> None:
    assert list(paragraphs_of_page(PAGE)) == [
        "open - open a file",
        "The open(2) call opens the file; the 'flags' say how it is done.",
        'Sie liefert "minus eins".',
    ]
