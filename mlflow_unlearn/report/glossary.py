"""The words of the report that not everybody knows: explained at its end, and linked where each comes first."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from markupsafe import Markup


@dataclass(frozen=True)
class Term:
    """A word or two.

    Attributes:
        key: of its anchors.
        name: as the glossary has it.
        meaning: in a sentence or two.
        spelled: regular expression of how texts write it; empty: as ``name``, small or capital.
    """

    key: str
    name: str
    meaning: str
    spelled: str = ""


TERMS = (
    Term("forget-set", "forget set", "The training samples that were to be forgotten."),
    Term("retain-set", "retain set", "The training samples that were not to be forgotten: all others."),
    Term("test-set", "test set", "Data that no model here was trained on: it shows what unseen samples look like."),
    Term("val-set", "validation set", "Unseen samples by which settings are chosen, so that the test set need not be."),
    Term(
        "gold",
        "gold standard",
        "A model that was trained anew without the forget set: what unlearning should come close to.",
        "gold standard|gold",
    ),
    Term(
        "membership",
        "membership",
        "Whether a sample was in the training set. Where that shows of forgotten ones, they are remembered.",
    ),
    Term(
        "attack",
        "attack, MIA",
        "Membership inference attack: a way to guess from a model's outputs whether a sample was in its training set.",
        "[Aa]ttack|mia",
    ),
    Term(
        "advantage",
        "advantage",
        "How much better than by guessing the attack tells forgotten samples from unseen ones: 0 not at all, 1 always.",
        "advantage",
    ),
    Term(
        "chance",
        "by chance",
        "What the attack reaches where there is nothing to find: the figure that 95 of 100 random divisions of the "
        "same samples stay below. Nothing up to it is a sign of memory.",
        "by.chance|chance|its null|null",
    ),
    Term(
        "rates",
        "TPR, FPR",
        "True and false positive rate: the shares of forgotten and of unseen samples that the attack calls members.",
        "TPR|FPR",
    ),
    Term("margin", "margin", "How far the output for the true class is above the highest other one, before softmax."),
    Term(
        "auc",
        "AUC",
        "Area under the ROC curve: how often the attack ranks a forgotten sample above an unseen one. 0.5 is guessing.",
        "AUC|auc",
    ),
    Term("entropy", "entropy", "How undecided an output is: 0 if all probability is on one class."),
    Term(
        "nats", "nats", "The unit of entropies and divergences with natural logarithms; ln 2 = 0.6931 nats are 1 bit."
    ),
    Term(
        "rf-jsd",
        "RF-JSD",
        "Retraining-free JSD: how far outputs on forgotten samples are from the original's on unseen ones. "
        "It needs no gold standard.",
        "RF-JSD|rf_jsd",
    ),
    Term(
        "jsd",
        "JSD",
        "Jensen–Shannon divergence: how different two outputs are, from 0, alike, to ln 2 = 0.6931 nats.",
        "JSD|jsd|divergence",
    ),
    Term(
        "floor",
        "floor",
        "How far two gold standards are from each other, trained alike with other seeds: less cannot be asked for.",
        "(?<!noise )floor",
    ),
    Term(
        "tau",
        "τ (tau), temperature",
        "Of LoTUS: how much the original's outputs on the forget set are smoothed to be learned anew in an epoch.",
        "temperature τ|τ",
    ),
    Term(
        "delta",
        "Δ (delta), accuracy gap",
        "Of LoTUS: accuracy on the forget set less that on unseen samples. It sets τ, and at 0 the work is done.",
        "accuracy gap Δ|Δ",
    ),
    Term("policy", "policy", "A file with the limits that a version must keep before it may be used."),
    Term("manifest", "manifest", "The list of the samples' ids, kept with the request; its digest shows any change."),
    Term("digest", "SHA-256", "A short number of a file's whole content: another content has another one.", "SHA-256"),
)


def _pattern(term: Term) -> str:
    """As a word of its own, or between the underscores of a metric's name."""
    spelled = term.spelled or f"[{term.name[0]}{term.name[0].upper()}]{term.name[1:]}"
    return rf"(?P<{term.key.replace('-', '_')}>(?<![^\W_])(?:{spelled})(?![^\W_]))"


_SPELLED = re.compile("|".join(map(_pattern, TERMS)))
_TAG = re.compile(r"(<[^>]*>)")
_CLOSED = {"a", "code", "details", "h2", "h3", "svg", "title"}
"""Elements in whose text nothing is linked, but for the names in the table of metrics; nor in what a user typed."""
_VOID = {"br", "img", "circle", "line", "path", "rect"}


@dataclass
class Glossary:
    """What one page has used.

    Attributes:
        used: the keys of terms that were linked, each with the id of its first link.
    """

    used: dict[str, str] = field(default_factory=dict)
    _linked: set[tuple[bool, str]] = field(default_factory=set)

    def link(self, html: Markup) -> Markup:
        """HTML with the first use of each term as a link: in running text, and once more in the table of metrics."""
        return Markup("".join(self._linked_parts(_TAG.split(html))))

    def terms(self) -> list[Term]:
        """Those that the page has used, in the order of the glossary."""
        return [term for term in TERMS if term.key in self.used]

    def _linked_parts(self, parts: list[str]) -> Iterator[str]:
        inside: list[tuple[str, bool, bool]] = []  # element, nothing is linked in it, it is in the table of metrics
        for part in parts:
            closed, table = (inside[-1][1], inside[-1][2]) if inside else (False, False)
            tag = re.match(r"<(/?)([a-z0-9]+)", part)
            if tag is None:
                yield part if closed else _SPELLED.sub(partial(self._first, table), part)
                continue
            name = tag[2]
            if tag[1]:
                while inside and inside.pop()[0] != name:
                    pass
            elif name not in _VOID and not part.endswith("/>"):
                closed |= (name in _CLOSED and not (table and name == "code")) or 'class="user"' in part
                inside.append((name, closed, table or 'class="metrics"' in part))
            yield part

    def _first(self, table: bool, match: re.Match[str]) -> str:
        key, text = str(match.lastgroup).replace("_", "-"), match[0]
        if (table, key) in self._linked:
            return text
        self._linked.add((table, key))
        own = "" if key in self.used else f' id="{self.used.setdefault(key, f"use-{key}")}"'
        return f'<a class="term"{own} href="#term-{key}">{text}</a>'
