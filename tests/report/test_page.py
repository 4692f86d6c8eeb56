"""The report as text: what it says, and that nothing in a record can break it."""

import html
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import records
import torch
from mlflow.utils.validation import _validate_metric_name
from pages import said

from mlflow_unlearn.evidence.audit import (
    CanaryRecord,
    ManyRecord,
    RelearnRecord,
    RetainedRecord,
    TailRecord,
    WithinRecord,
)
from mlflow_unlearn.evidence.policy import Check, Policy, Verdict, judge
from mlflow_unlearn.evidence.record import Exactness, Matched, Measured
from mlflow_unlearn.metrics.catalog import METRICS, READING
from mlflow_unlearn.metrics.outputs import SplitOutputs
from mlflow_unlearn.report import figures
from mlflow_unlearn.report.audit_table import metrics
from mlflow_unlearn.report.page import MAX_BYTES, moved, page

VOID = {"meta", "link", "br", "img"}
SHAPES = {"path", "line", "circle", "rect"}  # closed by "/>"
INLINE = {"span", "strong", "code", "a"}
PHRASING = INLINE | SHAPES | {"small", "svg", "br"}


class Parsed(HTMLParser):
    """Visible text, attributes, and which figures have a drawing and a table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.figures: list[dict[str, list[str]]] = []
        self.feed(text)
        self.close()
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.space(tag)
        # Browsers end a paragraph where one of these starts, and the layout breaks.
        assert "p" not in self.open or tag in PHRASING, f"<{tag}> in a paragraph"
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "figure":
            self.figures.append({"drawings": [], "titles": [], "tables": []})
        if "figure" in self.open:
            if tag == "svg" and ("role", "img") in attrs:
                self.figures[-1]["drawings"].append(tag)
            if tag == "table":
                self.figures[-1]["tables"].append(tag)
        if tag not in VOID | SHAPES:
            self.open.append(tag)

    def space(self, tag: str) -> None:
        if tag not in INLINE:
            self.words.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self.space(tag)
        if tag not in VOID | SHAPES:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)
        if "figure" in self.open and self.open[-1] == "title" and data.strip():
            self.figures[-1]["titles"].append(data)

    def values(self, tag: str, name: str) -> list[str]:
        return [value for found, attribute, value in self.attributes if (found, attribute) == (tag, name)]


def parsed(record, samples=(), **changes) -> Parsed:
    found = Parsed(page(record.model_copy(update=changes), records.verdict(record), samples))
    assert found.open == []
    return found


@pytest.fixture(scope="module")
def plain() -> Parsed:
    return parsed(records.evidence(), records.samples())


@pytest.fixture(scope="module")
def story() -> Parsed:
    return parsed(records.sequence())


def test_the_verdict_comes_first_with_every_check():
    record = records.evidence()
    verdict = records.verdict(record)
    text = parsed(record).text
    order = [text.index(word) for word in ("PASS", "What was asked", "Before and after", "How it was made")]
    assert order == sorted(order)
    for check in verdict.checks:
        for told in (check.rule, check.value, check.threshold, check.outcome, check.note):
            assert told in text
    assert "All 5 checks of the policy default passed" in text
    assert "The default policy’s verdict is advisory until mlflow-unlearn review records one" in text


def test_what_was_not_measured_has_not_passed(story):
    assert "FAIL" in story.text
    assert "what was not measured has not passed" in story.text
    assert records.UNMATCHED in story.text


def test_a_verdict_without_checks_and_one_of_a_policy_with_a_name():
    record = records.evidence()
    empty = Policy(name="house rules", rules=[], membership=None, minimum={})
    text = Parsed(page(record, judge(record, empty, signature=None))).text
    assert "The policy house rules has no checks. This verdict is advisory until" in text


def test_a_pass_that_tells_nothing_is_called_so_wherever_it_stands():
    """In the verdict, in the headline, beside the interval and in how to read it."""
    alike = records.measured()
    record = records.evidence(metrics={"original": alike, "unlearned": alike})
    text = Parsed(page(record, records.verdict(record))).text
    assert "1 of 5 checks of the policy default did not pass" in text and "uninformative membership" in text
    assert "Membership after uninformative advantage 0.061 (by chance up to 0.081)" in text
    assert f"after: uninformative. {READING['uninformative'].capitalize()}." in text
    drawn = figures.intervals(record, [])["rows"]
    assert [row["word"] for row in drawn] == ["indistinguishable", "uninformative"]


def test_a_record_of_before_is_drawn_by_its_intervals():
    """Its readings are those of ``mia_auc``, with the words of then."""
    plain = records.evidence(gold=False)
    columns = {model: records.of_before(one) for model, one in plain.metrics.items()}
    columns["unlearned"] = columns["unlearned"].model_copy(
        update={"values": columns["unlearned"].values | {"mia_auc_low": 0.4, "mia_auc_high": 0.6}}
    )
    known = {key: n for key, n in plain.definitions.items() if not key.startswith(("mia_advantage", "mia_margin"))}
    text = parsed(plain.model_copy(update={"metrics": columns, "definitions": known})).text
    assert "Membership after undecided AUC 0.507 [0.400, 0.600]; before 0.652 [0.619, 0.686]" in text
    assert "AUC of telling forgotten from unseen, with 95 % intervals" in text
    assert "The interval is too wide to tell" in text and "by chance" not in text.partition(" Words forget set ")[0]


def first_screen(found: Parsed) -> str:
    """Until the table of checks."""
    return found.text.partition(" outcome check ")[0]


def test_the_five_questions_are_answered_before_the_checks(plain, story):
    told = first_screen(plain)
    assert "To forget 420 samples of models:/digits/3. Reason: Withdrawal of consent under article 17 GDPR" in told
    assert "Data protection officer, on behalf of 14 participants; filed by ann@example.org, 2026-11-20" in told
    assert "How sure Membership: indistinguishable: forgotten and unseen samples look alike to the attack." in told
    assert "PASS" in told and "advantage 0.061" in told and "Test set accuracy 0.9556 → 0.9511" in told
    assert "What now mlflow-unlearn review --model-uri models:/digits/4 records the verdict of a policy" in told
    assert first_screen(story).count("What was asked") == 2 and "models:/digits/1" not in first_screen(story)
    many = [records.request(f"r{n}") for n in range(5)]
    told = first_screen(parsed(records.evidence(), requests=many, request_ids=[one.id for one in many]))
    assert told.count("What was asked") == 2 and "Asked as well 3 more, below" in told


def test_what_now_follows_from_the_review():
    record = records.evidence()
    for policy, now in (
        (Policy(), "What now mlflow-unlearn promote --model-uri models:/digits/4 puts it into use"),
        (Policy(minimum={"test": 10_000}), "review --model-uri models:/digits/4 lists what can be done about it"),
    ):
        found = Parsed(page(record, judge(record, policy, signature=None), recorded="review 1 by ann, 2026-11-25"))
        assert now in first_screen(found)


def test_a_metric_that_went_against_its_words_is_marked_in_words(plain):
    """The original's RF-JSD is 0.0214, and this one's 0.0081, which fell as it should; then it rises."""
    assert "should fall" in METRICS["rf_jsd"].meaning and ": should fall" not in plain.text
    record = records.evidence()
    after = record.metrics["unlearned"]
    for value, marked in ((0.0215, True), (0.0214, False), (0.0213, False)):
        worse = after.model_copy(update={"values": after.values | {"rf_jsd": value}})
        text = parsed(record, metrics=record.metrics | {"unlearned": worse}).text
        assert ("rose: should fall" in text) is marked


def test_each_term_is_linked_where_it_comes_first_and_explained_once(plain, story):
    for found in (plain, story):
        links = [link.removeprefix("#term-") for link in found.values("a", "href") if link.startswith("#term-")]
        explained = [term.removeprefix("term-") for term in found.values("dt", "id")]
        assert len(explained) > 15 and set(links) == set(explained) and len(set(explained)) == len(explained)
        assert max(map(links.count, links)) == 2  # in the text, and in the table of metrics
        backs = [link.removeprefix("#use-") for link in found.values("a", "href") if link.startswith("#use-")]
        assert backs == explained
        ids = [value for tag, name, value in found.attributes if name == "id"]
        assert len(set(ids)) == len(ids) and {f"use-{key}" for key in backs} <= set(ids)
    words = {"gold", "attack", "auc", "nats", "rf-jsd", "tau", "delta", "membership", "forget-set", "retain-set"}
    assert words <= {term.removeprefix("term-") for term in plain.values("dt", "id")}


def test_what_a_user_typed_is_no_term():
    reason = "the margin of the gold standard, by RF-JSD in nats"
    found = page(
        records.evidence(requests=[records.request("2026-11-20-withdrawal", reason=reason)]),
        records.verdict(records.evidence()),
    )
    assert found.count(f'<span class="user">{reason}</span>') == 2


def test_samples_that_were_not_drawn_as_unseen_ones_are_called_so():
    request = records.request("2026-11-20-withdrawal", exchangeable=False)
    text = parsed(records.evidence(), requests=[request]).text
    assert "; matched by class only" in text
    assert "Matched by class only." in text and "Compare with gold where there is one." in text


def test_the_report_of_a_review_says_that_it_is_recorded():
    record = records.evidence()
    text = Parsed(page(record, records.verdict(record), recorded="review 2 by <ravi>, 2026-11-25")).text
    assert "Recorded as review 2 by <ravi>, 2026-11-25." in text
    assert "advisory" not in text


def test_every_metric_is_shown_with_its_meaning(plain):
    record = records.evidence()
    for key, metric in METRICS.items():
        if not metric.interval_end:
            assert f"{key}{'' if metric.shown_times == 1 else ' × 10⁴'} {metric.meaning}" in plain.text
        for measured in record.metrics.values():
            if key in measured.values:
                assert figures.number(measured.values[key] * metric.shown_times) in plain.text
    assert "0.5072 [0.4713, 0.5441]" in plain.text
    assert "(tables show it × 10⁴) 0.3484 0.3484 0.3484 0.0000" in plain.text
    assert "−0.0045" in plain.text  # the change of acc_test
    assert READING["indistinguishable"].capitalize() in plain.text


def test_a_missing_value_is_a_dash_with_its_reason():
    text = parsed(records.evidence(gold=False)).text
    assert (
        "jsd divergence from gold on the forget set; see the floor – not computed: no gold model was given – –" in text
    )


def test_a_reason_of_one_model_names_it():
    record = records.evidence(gold=False)
    before = record.metrics["original"]
    values = {key: value for key, value in before.values.items() if key != "rf_jsd"}
    lacking = Measured(values=values, not_computed={"rf_jsd": "for some reason"}, counts={})
    assert (
        "– before not computed: for some reason" in parsed(record, metrics=dict(record.metrics, original=lacking)).text
    )


def test_what_was_asked_and_by_whom(plain, story):
    for told in (
        "420 of models:/digits/3",
        "2026-11-20T09:14:05+00:00",
        "ann@example.org",
        "Data protection officer, on behalf of 14 participants",
        "Withdrawal of consent under article 17 GDPR",
        "models:/digits/4 (this version)",
        "ben (not authenticated)",
    ):
        assert told in plain.text
    assert "models:/digits/3 (an earlier version)" in story.text
    assert "requester – not recorded reason – not recorded" in story.text


def test_what_was_not_forgotten_and_who_made_the_split(plain):
    record = records.evidence()
    asked = records.request("a", matched=Matched(trained=6, untrained=0, val=2, test=2, nowhere=0))
    data = record.data.model_copy(update={"split": "made by this tool: 120 drawn", "trained_on": "assumed: all of it"})
    text = parsed(record, requests=[asked], data=data).text
    assert "also named 2 in the validation split, 2 in the test split: not forgotten" in text
    assert "split made by this tool: 120 drawn" in text and "trained on assumed: all of it" in text
    assert "also named" not in plain.text and "trained on assumed" not in plain.text


def test_what_qualifies_the_verdict_stands_beside_it(plain, story):
    assert story.text.index("Incomplete") < story.text.index("FAIL")
    head = story.text[: story.text.index("outcome check value threshold")]
    assert "Incomplete: a class is not forgotten – the unlearned model still names class 'seven'" in head
    assert "loading it ran the code that it carries" in head
    assert "Frozen layers cannot forget what they encode" in head and "layer3" in head
    assert "the temperature has reached its bound in epoch 1" in head
    for word in ("Incomplete", "pickle", "Frozen"):
        assert word not in plain.text


def test_each_request_and_their_union_are_measured_apart(plain, story):
    assert "Each request by itself" not in plain.text
    section = story.text[story.text.index("Each request by itself") : story.text.index("What the outputs look like")]
    for name in (
        "2026-08-01-licence",
        "2026-11-20-withdrawal",
        "2026-11-22-mislabelled",
        "everything forgotten so far",
    ):
        assert name in section
    assert "0.5120 [0.4400, 0.5800]" in section
    assert f"mia, mia_test, mia_excess, mia_auc not computed: {records.UNMATCHED}" in section


def test_every_figure_has_titles_a_text_equivalent_and_no_colour_alone(plain, story):
    for found, least in ((plain, 7), (story, 7)):
        assert len(found.figures) == least
        for figure in found.figures:
            assert figure["drawings"] and figure["tables"]
            assert len(figure["titles"]) == len(figure["drawings"])
    ids = [value for _, name, value in plain.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    named = " ".join(plain.values("svg", "aria-labelledby")).split()
    assert set(named) <= set(ids)


def test_the_curves_show_the_temperature_and_the_table_every_epoch(plain):
    assert "temperature τ by epoch" in plain.text
    first = records.lotus_history()[0]
    assert figures.number(first["temperature"]) in plain.text


def test_the_shards_of_an_ensemble_are_one_curve():
    """Shard and stage say where an epoch stands: the table has them, and nothing is drawn of them."""
    history = records.exact().learning.history
    curves = figures.curves(history)
    assert [panel["name"] for panel in curves["panels"]] == ["loss"]
    [line] = curves["panels"][0]["lines"]
    assert line["key"] == "loss" and len(line["marks"]) == len(history) == 16
    assert curves["columns"] == ["loss", "seconds", "shard", "stage"]
    assert curves["table"][4] == ("4", ["0.9000", "0.1000", "3", "1"])


def test_what_a_claim_does_not_cover_is_a_list_of_its_own():
    record = records.exact()
    found = page(record, records.verdict(record))
    note = found[found.index('<div class="note"><strong>Exact.</strong>') :]
    covered, _, rest = note.partition("<strong>Not covered:</strong>")
    assert records.COVERS in said(covered) and not any(sentence in covered for sentence in records.EXCLUDED)
    listed = rest[: rest.index("</ul>")]
    assert listed.count("<li>") == len(records.EXCLUDED)
    assert all(sentence in html.unescape(said(listed)) for sentence in records.EXCLUDED)
    ended = records.evidence(exactness=Exactness(covers="The source version could be unlearned exactly."))
    text = parsed(ended).text
    assert "The source version could be" in text and "Not covered" not in text
    assert "What was trained again" not in text and "Not covered" not in parsed(records.evidence()).text


def test_a_reviewer_sees_what_was_trained_again_and_what_stayed():
    text = parsed(records.exact()).text
    assert (
        text.index("FAIL" if "FAIL" in text else "PASS")
        < text.index("What was trained again")
        < text.rindex("What was asked")
    )
    assert "How sure exact, as far as stated below. Membership: " in text
    assert "trained again 2 of 4 shards: shard 1 from slice 3, shard 3 from its start" in text
    assert "as in the source 2 of them, by the digests of their weights" in text
    assert "steps 77 of 1,827 from scratch (4.2%) checkpoints kept 5" in text
    assert f"0 as in the source {records.digest(0)} 1 trained again from slice 3 – 2 as in the source" in text


def test_of_many_shards_some_are_left_to_the_record():
    assert "20 more are in evidence.json" in parsed(records.exact(shards=120)).text


def test_a_training_that_was_rewound_has_no_shards():
    claim = Exactness(covers="The last 2 of 8 epochs.", steps=16, steps_from_scratch=64, checkpoints=3)
    text = parsed(records.evidence(exactness=claim)).text
    assert "steps 16 of 64 from scratch (25.0%) checkpoints kept 3" in text and "shards" not in text


def test_a_method_without_epochs_says_so():
    record = records.evidence()
    provenance = record.provenance.model_copy(update={"method": "ssd"})
    learning = record.learning.model_copy(update={"history": [], "final": {}})
    assert "ssd records no values by epoch" in parsed(record, provenance=provenance, learning=learning).text


@pytest.mark.parametrize(
    "history",
    [
        [{"epoch": 0, "loss": 0.0}],
        [{"loss": math.nan, "other": math.inf}],
        [{"epoch": 0, "loss": 1e-20}, {"epoch": 1, "loss": 3e12, "max_loss": -4.0}],
        [{"epoch": i, "loss": 1.0} for i in range(1000)],
    ],
    ids=["one", "no numbers", "far apart", "thousand"],
)
def test_any_history_can_be_drawn(history):
    record = records.evidence()
    text = parsed(record, learning=record.learning.model_copy(update={"history": history})).text
    if len(history) == 1000:
        assert "200 of 1000 epochs, evenly spread" in text


def test_nan_is_never_shown():
    record = records.evidence()
    values = record.metrics["unlearned"].values | {"acc_val": math.nan, "rf_jsd": math.inf}
    broken = record.metrics["unlearned"].model_copy(update={"values": values})
    rows = [
        row.model_copy(update={"acc_test": {"original": math.nan, "unlearned": 0.5}}) for row in record.figures.classes
    ]
    history = [{"epoch": 0, "loss": math.nan}, {"epoch": 1, "loss": 0.5}]
    found = parsed(
        record,
        metrics=dict(record.metrics, unlearned=broken),
        figures=record.figures.model_copy(update={"classes": rows}),
        learning=record.learning.model_copy(update={"history": history}),
    )
    shown = found.text + " ".join(value for *_, value in found.attributes)
    assert not re.search(r"\b(nan|inf|None|Undefined)\b", shown)
    assert "+–" not in shown
    assert "after not computed: not a finite number" in found.text


def test_html_in_any_field_is_text():
    record = records.evidence(classes=[f"{records.HOSTILE} {i}" for i in range(10)])
    hostile = records.Person(name=records.HOSTILE, authenticated=True)
    asked = records.request(
        records.HOSTILE,
        of=records.HOSTILE,
        requester=records.HOSTILE,
        reason=records.HOSTILE * 12,
        filed=records.HOSTILE,
        filed_by=hostile,
        carried_out_by=records.HOSTILE,
        metrics=record.metrics,
    )
    hostile_check = Check(
        rule=records.HOSTILE, value=records.HOSTILE, threshold=records.HOSTILE, outcome="fail", note=records.HOSTILE
    )
    record = record.model_copy(
        update={
            "made_by": hostile,
            "requests": [asked],
            "request_ids": [records.HOSTILE],
            "incomplete": records.HOSTILE,
            "source": record.source.model_copy(update={"uri": records.HOSTILE}),
            "result": record.result.model_copy(update={"name": records.HOSTILE, "files": {records.HOSTILE: "0"}}),
            "data": record.data.model_copy(update={"source": records.HOSTILE, "transform": records.HOSTILE}),
            "provenance": record.provenance.model_copy(
                update={
                    "method": records.HOSTILE,
                    "params": {records.HOSTILE: records.HOSTILE},
                    "prefix": records.HOSTILE,
                }
            ),
            "learning": record.learning.model_copy(
                update={
                    "warnings": [records.HOSTILE],
                    "history": [{records.HOSTILE: 1.0}, {records.HOSTILE: 2.0}],
                }
            ),
            "system": {records.HOSTILE: records.HOSTILE},
        }
    )
    verdict = Verdict(policy=records.HOSTILE, policy_sha256="0", checks=[hostile_check])
    shown = records.Sample(
        records.HOSTILE, records.HOSTILE, (records.HOSTILE, 1.0), (records.HOSTILE, 1.0), 0.1, records.png(1)
    )
    text = page(record, verdict, [shown])
    found = Parsed(text)
    assert found.open == []
    assert "script" not in found.tags
    assert "<script" not in text
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in found.text


def test_it_asks_for_nothing_outside_itself(plain):
    assert "script" not in plain.tags
    assert all(value.startswith(("data:", "#")) for tag in ("img", "a", "link") for value in source_of(plain, tag))
    assert "default-src 'none'" in " ".join(plain.values("meta", "content"))
    assert not re.search(r"url\(|@import|https?://", page(records.evidence(), records.verdict(records.evidence())))


def source_of(found: Parsed, tag: str) -> list[str]:
    return found.values(tag, "src") + found.values(tag, "href")


def test_evidence_not_a_certificate(plain, story):
    for found in (plain, story):
        assert "Evidence of unlearning" in found.text
        assert "certificate" not in found.text.lower()


def test_how_it_was_made(plain):
    record = records.evidence()
    for told in (
        record.run.id,
        record.sha256,
        record.source.weights_sha256,
        record.result.weights_sha256,
        record.result.files["MLmodel"],
        "716c7d1c0ffee (with uncommitted changes)",
        "bf16",
        "alpha 8.0",
        "13.4",
    ):
        assert told in plain.text


def test_the_lineage_names_versions_methods_and_requests(story):
    part = story.text[story.text.index("Where it comes from") : story.text.index("Limits")]
    names = ["models:/digits/1", "scrub", "2026-08-01-licence", "models:/digits/3", "lotus", "models:/digits/4"]
    places = [part.index(name) for name in names]
    assert places == sorted(places)
    assert "this version" in part


def test_a_long_lineage_is_cut_and_says_so():
    record = records.sequence()
    steps = [
        record.lineage[0].model_copy(update={"source_uri": f"models:/m/{i}", "uri": f"models:/m/{i + 1}"})
        for i in range(30)
    ]
    text = parsed(record, lineage=steps).text
    assert "11 earlier steps are in evidence.json" in text
    assert "the same weights" in text  # the source is none of these versions


def test_many_classes_show_the_most_changed():
    names = [f"class {index:04d}" for index in range(1000)]
    record = records.evidence(classes=names)
    text = page(record, records.verdict(record))
    found = Parsed(text)
    assert len(text.encode()) < MAX_BYTES
    assert "Test accuracy by class: the 40 most changed of 1000 classes" in found.text
    assert "RF-JSD by class, nats: the 40 most changed of 500 classes 500 of 1000 classes have none" in found.text
    rows = record.figures.classes
    most = max(rows, key=lambda row: abs(row.acc_test["unlearned"] - row.acc_test["original"]))
    assert most.name in found.text


def test_a_tiny_forget_set_has_reasons_in_the_place_of_figures():
    record = records.evidence(gold=False)
    rows = [row.model_copy(update={"acc_test": {}, "rf_jsd": {}}) for row in record.figures.classes]
    few = {model: records.unmeasured() for model in record.metrics}
    text = parsed(record, metrics=few, figures=record.figures.model_copy(update={"classes": rows})).text
    assert f"Membership was not measured: {records.UNMATCHED}" in text
    assert "no class has a test sample" in text
    assert "RF-JSD by class: – no gold model was given" in text


def test_a_huge_record_stays_small_and_says_what_is_left_out():
    record = records.evidence()
    ids = [f"{index} {'日' * 1300}" for index in range(300)]
    many = [records.request(id, reason="'\n" * 2000, metrics=record.metrics) for id in ids]
    record = record.model_copy(update={"requests": many, "request_ids": ids})
    text = page(record, records.verdict(record), records.samples())
    assert len(text.encode()) <= MAX_BYTES
    found = Parsed(text)
    assert "more are in evidence.json" in found.text
    assert "more checks are left out here" in found.text


def test_samples_are_shown_with_their_names_or_without(plain):
    assert "train/00003.png" in plain.text
    assert "Moved most" in plain.text and "Moved least" in plain.text
    hidden = parsed(records.evidence(), records.samples(named=False))
    assert "train/" not in hidden.text
    assert len(hidden.values("img", "src")) == 12
    assert "Forget sample of class three" in hidden.values("img", "alt")
    assert "Samples" not in re.findall(r"Samples(?!:)", parsed(records.evidence()).text)


def test_a_file_name_that_is_no_unicode_does_not_break_the_page():
    [shown] = records.samples(1)
    text = page(records.evidence(), records.verdict(records.evidence()), [replace(shown, name="bad\udcff.png")])
    assert "bad?.png" in text


def split_outputs(probabilities) -> SplitOutputs:
    p = np.asarray(probabilities, dtype=float)
    return SplitOutputs(np.zeros(len(p), int), p.argmax(1), np.zeros(len(p)), *[p.max(1)] * 3, np.zeros((2, 2)), p)


def test_moved_takes_the_samples_that_moved_most_and_least():
    """Sample i moves from (1, 0) to (1 − i/20, i/20): the further the higher its number."""
    before = split_outputs([[1.0, 0.0]] * 20)
    after = split_outputs([[1 - i / 20, i / 20] for i in range(20)])
    outputs = {"original": {"forget": before}, "unlearned": {"forget": after}}
    dataset = [(torch.full((3, 4, 4), float(i)), 0) for i in range(20)]
    found = moved(outputs, dataset, [f"s{i}" for i in range(20)], ["cat", "dog"], count=2)
    assert [one.name for one in found] == ["s19", "s18", "s1", "s0"]
    first = found[0]
    assert (first.label, first.before, first.after) == ("cat", ("cat", 1.0), ("dog", pytest.approx(0.95)))
    assert found[-1].divergence == 0
    assert [one.name for one in moved(outputs, dataset[:20], [""] * 20, ["cat", "dog"], count=50)] == [""] * 20


def test_moved_needs_the_probabilities():
    bare = SplitOutputs(*[np.zeros(1, int)] * 2, *[np.zeros(1)] * 4, np.zeros((2, 2)))
    with pytest.raises(ValueError, match="keep_probabilities"):
        moved({"original": {"forget": bare}, "unlearned": {"forget": bare}}, [], [], [])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 300, 200), (5, 8, 8), (2, 8, 8)])
def test_pictures_are_scaled_and_small(shape):
    from io import BytesIO

    from PIL import Image

    image = torch.linspace(-3, 7, math.prod(shape)).reshape(shape)
    image[0, 0, 0] = math.nan if shape[0] == 5 else image[0, 0, 0]
    one = split_outputs([[1.0, 0.0]])
    [found] = moved({"original": {"forget": one}, "unlearned": {"forget": one}}, [(image, 0)], ["a"], ["cat", "dog"])
    picture = Image.open(BytesIO(found.png))
    assert picture.mode == "RGB"
    assert max(picture.size) <= 96
    low, high = np.asarray(picture).min(), np.asarray(picture).max()
    assert low <= 5 and high >= 250
    if shape == (3, 300, 200):
        assert picture.size == (64, 96)


def test_a_collapse_is_said_above_everything():
    record = records.collapsed()
    text = Parsed(page(record, judge(record, Policy(), signature=None))).text
    assert text.index(f"Collapsed: the metrics are void – {records.COLLAPSED}") < text.index("Membership after")
    assert "Collapsed" not in Parsed(page(records.evidence(), judge(records.evidence(), Policy(), signature=None))).text


class TestAudit:
    def test_a_review_that_rests_on_one_shows_it(self):
        record, audit = records.evidence(), records.audit()
        text = Parsed(page(record, records.verdict(record), audit=audit)).text
        for part in ("Not told apart", "Share remembered", "0.0100", "rmia", "digits/7 (0.93)", "True positives over"):
            assert part in text, part
        assert "Share remembered" not in Parsed(page(record, records.verdict(record))).text

    def test_what_was_asked_for_besides(self):
        """Relearning as a row of the attacks, with a column for the known cheat; the method; those who stay."""
        again = RelearnRecord(forget=[1.0], unseen=[3.0], ratio=0.52, p_value=0.013, censored=0.0)
        many = {"u_lira": 0.61, "u_lira_low": 0.48, "u_lira_high": 0.53}
        shown = records.audit(
            attacks={name: {"rmia": records.attack(0.5)} for name in ("audited", "original", "known cheat")},
            relearning={"audited": again, "known cheat": again.model_copy(update={"ratio": 0.07})},
            many=ManyRecord(unlearned=16, golds=17, klom_p95=1.25, klom_p95_null=1.0, **many),
            retained=RetainedRecord(samples=9, attacks={"audited": records.attack(0.5)}, rise_p95=0.1, worst=[]),
        )
        record = records.evidence()
        text = Parsed(page(record, records.verdict(record), audit=shown)).text
        for part in ("known cheat", "epochs of forgotten to those of unseen samples", "0.52", "0.013", "0.07"):
            assert part in text, part
        assert "by 16 versions made alike and 17 retrained models: U-LiRA 0.610 (alike: 0.480 to 0.530)" in text
        assert "KLoM P95 1.250 (alike: up to 1.000)" in text and "with an AUC of 0.600 (audited)" in text

    def test_its_metrics_have_names_that_mlflow_takes(self):
        """Of everything that a record can hold."""
        within = {name: WithinRecord(value=1.0, low=0.0, high=2.0) for name in ("TPR at 1 % FPR by rmia", "AUC by iam")}
        coins = CanaryRecord(pairs=9, larger=5, p_value=0.5, advantage=0.1, bound=0.4, e_value=1.0)
        again = RelearnRecord(forget=[1.0], unseen=[3.0], ratio=0.52, p_value=0.013, censored=0.0)
        many = ManyRecord(
            unlearned=16, golds=17, u_lira=0.6, u_lira_low=0.4, u_lira_high=0.5, klom_p95=1.0, klom_p95_null=2.0
        )
        attacks = {
            name: {"rmia": records.attack(0.5, TailRecord(tpr=0.1, low=0.0, high=0.2))}
            for name in ("audited", "original", "gold 1", "known cheat")
        }
        kept = RetainedRecord(samples=9, attacks={"gold 1": records.attack(0.5)}, rise_p95=0.1, worst=[])
        besides = {"canaries": {"audited": coins}, "relearning": {"known cheat": again}, "many": many, "retained": kept}
        found = metrics(records.audit(attacks=attacks, within_golds=within, **besides))
        assert {"audit.within.TPR_at_1_FPR_by_rmia", "audit.known_cheat.relearning.p", "audit.klom_p95"} <= found.keys()
        for name in found:
            _validate_metric_name(name)

    def test_without_figures_and_share(self):
        record = records.evidence()
        bare = {"share_remembered": None, "share_missing": "needs a gold standard", "worst": [], "completeness": None}
        drawn = records.AuditFigures(attack="", curves={}, rates=[], remembered={})
        shown = records.audit(**bare, drawn=drawn, not_measured={"iam": "<b>needs a model</b>"})
        text = Parsed(page(record, records.verdict(record), audit=shown)).text
        assert "needs a gold standard" in text and "iam was not measured: <b>needs a model</b>." in text
        assert "True positives over" not in text
