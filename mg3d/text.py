"""From a report to sentences, and from sentences to token ids that know their word and their sentence.

The paper wants sentences "as concise as possible while maintaining a complete and coherent structure" (Sec. III-A).
So a sentence ends at a full stop, a question mark, a list item, or a quotation mark that opens the next item; at a
semicolon or a comma only where both sides can stand as clauses. Nothing ends inside parentheses, decimals, dates,
abbreviations or enumerations ("right upper, middle and lower lobes"). A header ("Findings:", "When examined in the lung
parenchyma window;") is no whole sentence, so it stays with the sentence that it introduces.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

import numpy as np
import torch

from mg3d.types import Report

# Parentheses (nested once; not the "(1)" of a list) and quoted words in a sentence ('the "mosaic" sign') hold no end.
SHIELD = re.compile(r'\((?!\d{1,2}\))(?:[^()]|\([^()]*\)){0,400}\)|"\w[\w\s-]{0,40}"(?=\s[a-z]|,)')
QUOTE = r"[\"“”]"
NUMBER = r"\(?\d{1,2}[.)、](?![\d.])"  # of a list item: "1." "2)" "(3)"

# Ends of a sentence, unless `abbreviated`. The sentence keeps the group; spaces, bullets and quotes are dropped.
END = re.compile(
    rf"""
    (?= [.!?。"“”•·\n(\d*–-] ) (?:  # a quick look at one letter halves the time
      (?P<keep> (?: [.!。]+ | \?+ (?! \s*[a-z,] ) ) [)\]]? )
          (?: \s? {QUOTE} )* (?: \s+ (?! \(x ) (?: [-–] (?=\s?[A-Z]) )? | (?= [A-Z][a-z] ) | (?<= 。 ) | $ )
    | (?P<item> (?: ^ | (?<= [.;:?!。] \s ) | (?<= [.;?!。] ) ) {NUMBER} ) (?= \s? [A-Za-z] )
    | [•·]
    | (?: ^ | \n ) (?: [-–*] | {NUMBER} ) \s+
    | (?<! : ) (?<! :\s ) {QUOTE}+ (?= \s? [A-Z\d] )
    | (?<! [,:;] ) \n+ (?= [A-Z\d] ) )
    """,
    re.VERBOSE,
)
WRAPPED = re.compile(  # a new line that is no end
    rf"(?<=[a-z,\d])\n(?![-–*] |{NUMBER})(?=[a-z\d(])|(?<=\b(?:of|in|to|or))\n|(?<=\b(?:the|and))\n|(?<=[,:;])\n+"
)
EDGE = '"“”•·|* \t\n\r\f\v\xa0'  # what says nothing at the edges of a sentence

# Words before a full stop that ends no sentence: always; before a digit; before a digit or a small letter.
ABBREVIATIONS = {"dr", "mr", "mrs", "ms", "prof", "assist", "approx", "e.g", "i.e", "vs", "cf", "resp", "incl", "al"}
NUMBERED = {"no", "nos", "fig", "figs", "im", "img", "se", "ser", "ca", "vol", "p", "pp"}
SHORTENED = {"max", "min", "lab", "clin", "ant", "post", "lat", "med", "sup", "inf", "seg", "diff", "diam"}

VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|had|can|could|may|cannot|does|did|shows?|showed|sees|appears?|appeared|reveals?"
    r"|revealed|suggests?|indicates?|remains?|contains?|becomes?|became)\b"
)
LINK = re.compile(  # from here on a clause is subordinate
    r"\b(?:that|which|who|whose|whom|where|when|while|because|since|although|though|if|as\s+far\s+as|whether)\b.*"
    r"|\A\s*(?:as|after|before|once|until)\b.*",
    re.DOTALL | re.IGNORECASE,
)
NEGATION = re.compile(r"\s*no\s+\w", re.IGNORECASE)  # "no pleural effusion" stands without a verb
HEADER = re.compile(  # words that open a phrase in front of the clause that it belongs to
    r"\s*(?:(?:and|but)\s+)?(?:when|while|if|as|although|though|since|because|after|before|during|in|on|at|within|for"
    r"|with|compared|according)\b",
    re.IGNORECASE,
)
LISTED = re.compile(r"\b(?:is|are|was|were|be|been)\s+(?:seen|observed|detected|found|noted|identified|determined)\b")
LEANS = re.compile(  # a right side that is not whole without the left one
    r"""\s* (?: (?: and | but | or ) \s+ )? (?:
      (?: its? | they | their | them | this | these | those | some | both \s of | all \s of | most \s of | ones? | each
        | which | who | whose | that | where | when | while | as | than | because | since | although | though | if ) \b
    | (?: is | are | was | were | has | have | had | can | could | may | does | did | shows? | showed | remains? ) \b
    | (?: with | without | about | approximately | up \s to | of | in | on | at | to | from | within | for | by
        | especially | including | such | mainly | mostly | particularly | partially | predominantly | measuring
        | respectively | evaluated | considered | compatible | consistent | suggestive | secondary | due | seen
        | observed | detected | extending | including ) \b
    | (?: \w+ \s+ ){0,4} of \s+ (?: which | whom | them | it ) \b
    | the \s+ (?: \w+ \s+ ){0,2} (?: sizes? | diameters? | boundary | boundaries | edges? | margins? | larger | largest
        | smaller | biggest | maximum | ct | others? | rest | same | latter | former | lesions? | nodules? | range
        | scope | thickness | surrounding | adjacent ) \b
    | (?: edges? | boundary | margins? | sizes? | diameters? | density | ct \s values? ) \b
    )""",
    re.VERBOSE | re.IGNORECASE,
)


def split(report: str) -> list[str]:
    """Sentences of a report, in order, as concise as possible and yet whole.

    Each is a piece of the report (runs of white space become one space); what is left out between them is white space,
    bullets, quotation marks at the edges, and the numbers of list items. An empty report gives an empty list.
    """
    text = "\n".join(" ".join(line.split()) for line in report.strip().split("\n"))
    if "\n" in text:
        text = WRAPPED.sub(" ", text)
    shadow = SHIELD.sub(blank, text)
    pieces: list[str] = []
    start = 0
    for stop, after in ends(shadow):
        cuts = [start, *(start + cut for cut in clauses(shadow[start:stop])), stop]
        pieces += (text[a:b].strip(EDGE) for a, b in pairwise(cuts))
        start = after
    return [piece.replace("\n", " ") for piece in pieces if any(map(str.isalnum, piece))]


def ends(shadow: str) -> Iterator[tuple[int, int]]:
    """Where a sentence stops and where the next one starts, the end of the report last."""
    start = place = 0
    while match := END.search(shadow, place):
        place = match.end()
        if abbreviated(shadow, match) or (match["item"] and not begins(shadow[start : match.start()], match["item"])):
            place = match.start() + 1
            continue
        yield max(match.start(), match.end("keep")), match.end()
        start = place
    yield len(shadow), len(shadow)


def blank(match: re.Match) -> str:
    """As many letters as the match has; parentheses stay."""
    inside = "x" * (len(match[0]) - 2)
    return f"({inside})" if match[0][0] == "(" else f"x{inside}x"


def abbreviated(text: str, match: re.Match) -> bool:
    """Whether a full stop belongs to an abbreviation, an initial, an ordinal ("T12. vertebra") or an ellipsis."""
    stop, end = match.start(), match.end()
    if text[stop] != "." or end == len(text):
        return False
    following = text[end]
    if match["keep"] != ".":
        return match["keep"].startswith("..") and following.islower()
    words = text[max(0, stop - 24) : stop].rsplit(maxsplit=2)
    last = words[-1].lstrip("([") if words else ""
    before = words[-2] if len(words) > 1 else ""
    if len(last) == 1 and last.isupper():  # A. Smith, after a title or another initial
        return before in ("by", "Dr.", "Prof.") or (len(before) == 2 and before[0].isupper() and before[1] == ".")
    known = {last.lower(), last.lower().rpartition(".")[2]}
    if following.isdigit():
        return not known.isdisjoint(ABBREVIATIONS | NUMBERED | SHORTENED)
    if following.islower():
        ordinal = re.fullmatch(r"[A-Za-z]?\d{1,2}", last) is not None
        return ordinal or not known.isdisjoint(ABBREVIATIONS | SHORTENED)
    return not known.isdisjoint(ABBREVIATIONS)


def begins(before: str, number: str) -> bool:
    """Whether a number begins a list item: after a whole sentence, or a 1 after a colon; not "No. 5." or "Im: 51."."""
    last = before.rstrip()[-1:]
    return last in ";?!" or (last == ":" and number.strip("(.)、") == "1")  # "" after a whole sentence


def clauses(shadow: str) -> list[int]:
    """Places in a sentence, each after a comma or a semicolon, where it falls into clauses that can stand alone."""
    marks = [m.end() for m in re.finditer(r"[,;](?!\S)", shadow)]
    cuts: list[int] = []
    start = 0
    whole = closed = front = denied = False  # what is known of the words since `start`, and of the last part
    for begin, end in pairwise([0, *marks, len(shadow)]) if marks else ():
        part = shadow[begin:end]
        leans, verb, negates = bool(LEANS.match(part)), verb_of(part), bool(NEGATION.match(part))
        if begin > start and shadow[begin - 1] == ";":
            title = not whole and HEADER.match(shadow, start, begin)
            cut = not title and not leans and (whole or verb or negates or part.lstrip()[:1].isupper())
        elif denied and not negates:  # "no nodule, mass or infiltration was seen" is one; "no effusion, X is large" two
            cut = whole and closed and verb and not leans and not LISTED.search(part)
        else:
            cut = whole and not leans and ((closed and verb) or (negates and not front))
        if cut:
            cuts.append(begin)
            start, whole = begin, False
        whole = whole or ((verb or negates) and (begin == start or not leans))
        front = not verb and bool(HEADER.match(part))
        closed = verb or (not front and len(part.split()) > 3)  # a short part may be the first item of an enumeration
        denied = negates and not verb
    return cuts


def verb_of(clause: str) -> bool:
    """Whether a clause has a finite verb with something before it."""
    verb = VERB.search(LINK.sub("", clause))
    return verb is not None and not clause[: verb.start()].isspace() and verb.start() > 0


@dataclass(frozen=True)
class Tokens:
    """One tokenised report, without [CLS], [SEP] and padding."""

    ids: np.ndarray  # [L-2] int32
    word: np.ndarray  # [L-2] int32, number of the whole word
    length: np.ndarray  # [S] int32, tokens of each sentence
    dropped: int  # sentences left out at the end
    cut: int  # tokens cut off a first sentence that is longer than the limit


@final
class Tokeniser:
    """Reports -> token ids with the number of their whole word and of their sentence.

    `words` is [CLS], the tokens of all sentences, [SEP]. Beyond `max_words` tokens whole sentences are dropped from the
    end; only a first sentence that is too long by itself is cut. `dropped` and `cut` say how much, so that an audit can
    print it. A distinct report is tokenised once and kept.
    """

    def __init__(self, tokenizer: Any, *, max_words: int = 512):
        """Wrap a transformers tokenizer (PreTrainedTokenizerFast).

        Raises ValueError if it cannot tell whole words (a slow tokenizer), or if `max_words` has no room for one word.
        """
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} does not tell whole words: take a tokenizer with tokenizer.json"
            )
        if max_words < 3:
            raise ValueError(f"max_words={max_words} has no room for [CLS], one word and [SEP]: take 3 or more")
        self.tokenizer = tokenizer
        self.max_words = max_words
        self.cls: int = tokenizer.cls_token_id
        self.sep: int = tokenizer.sep_token_id
        self.pad: int = tokenizer.pad_token_id
        self._known: dict[str, Tokens] = {}

    def __call__(self, reports: Sequence[str]) -> Report:
        """Tokenise B reports, padded to the longest. Raises ValueError naming the place of a report without words."""
        rows = self._tokens(reports)
        count = np.array([len(row.length) for row in rows])
        length = np.concatenate([row.length for row in rows])  # of all sentences of the batch
        size = np.array([len(row.ids) for row in rows])
        ids = np.concatenate([row.ids for row in rows])

        patient = np.repeat(np.arange(len(rows)), size)  # of each token
        place = np.arange(len(ids)) - np.repeat(np.cumsum(size) - size, size)
        sentence = np.repeat(ramp(count), length)
        offset = ramp(length)

        words = np.full((len(rows), size.max() + 2), self.pad)
        word, number = np.full_like(words, -1), np.full_like(words, -1)
        words[:, 0] = self.cls
        words[np.arange(len(rows)), size + 1] = self.sep
        words[patient, place + 1] = ids
        word[patient, place + 1] = np.concatenate([row.word for row in rows])
        number[patient, place + 1] = sentence

        alone = np.full((len(rows), count.max(), length.max() + 2), self.pad)
        alone[patient, sentence, offset + 1] = ids
        owner = np.repeat(np.arange(len(rows)), count)
        alone[owner, ramp(count), 0] = self.cls
        alone[owner, ramp(count), length + 1] = self.sep
        return Report(*(torch.from_numpy(x) for x in (words, word, number, alone)), pad=self.pad)

    def dropped(self, reports: Sequence[str]) -> list[int]:
        """Sentences of each report that `max_words` leaves out."""
        return [row.dropped for row in self._tokens(reports)]

    def cut(self, reports: Sequence[str]) -> list[int]:
        """Tokens that are cut off the first sentence of each report (0 unless it is longer than `max_words`)."""
        return [row.cut for row in self._tokens(reports)]

    def _tokens(self, reports: Sequence[str]) -> list[Tokens]:
        new = [report for report in dict.fromkeys(reports) if report not in self._known]
        sentences = [split(report) for report in new]
        empty = next((report for report, parts in zip(new, sentences, strict=True) if not parts), None)
        if empty is not None:
            raise ValueError(f"report {list(reports).index(empty)} of {len(reports)} has no words: {empty!r}")
        flat = [sentence for parts in sentences for sentence in parts]
        encodings = self.tokenizer(flat, add_special_tokens=False, verbose=False).encodings if flat else []
        start = 0
        for report, parts in zip(new, sentences, strict=True):
            # what the tokenizer has no token for, e.g. a lone control character, is no sentence to it
            self._known[report] = self._fit([e for e in encodings[start : start + len(parts)] if e.ids])
            start += len(parts)
        return [self._known[report] for report in reports]

    def _fit(self, encodings: Sequence) -> Tokens:
        """As many whole sentences as `max_words` has room for."""
        room = self.max_words - 2
        length = np.array([len(e.ids) for e in encodings])
        kept = max(1, int((np.cumsum(length) <= room).sum()))
        ids, words, before = [], [], 0
        for encoding in encodings[:kept]:
            ids.append(np.array(encoding.ids, dtype=np.int32))
            words.append(np.array(encoding.word_ids, dtype=np.int32) + before)
            before = int(words[-1][-1]) + 1
        length = np.minimum(length[:kept], room).astype(np.int32)
        total = int(length.sum())
        return Tokens(
            ids=np.concatenate(ids)[:total],
            word=np.concatenate(words)[:total],
            length=length,
            dropped=len(encodings) - kept,
            cut=max(0, len(encodings[0].ids) - room),
        )


def ramp(counts: np.ndarray) -> np.ndarray:
    """0, 1, ... n-1 for each n of `counts`, one after the other."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
