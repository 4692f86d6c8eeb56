"""`model_card.md` as releases with evidence schema 2 wrote it, so that `verify` can hold their cards against it.

Frozen: it reads the stored JSON alone and shares no words with today's card, whatever becomes of that.
"""

from collections.abc import Mapping
from typing import Any

_MEANING = {
    "acc_forget": "accuracy on the forget set; gold's value is right",
    "acc_retain": "accuracy on the retain set; should stay",
    "acc_val": "accuracy on the validation set; should stay",
    "acc_test": "accuracy on the test set; should stay",
    "acc_test_forgotten": "accuracy on wholly forgotten classes; should fall",
    "mia": "forget samples that the attack calls members; follows confidence",
    "mia_test": "test samples that the same attack calls members",
    "mia_excess": "mia − mia_test; near 0 is right, both signs are failures",
    "mia_auc": "telling forget from test by entropy; 0.5 is right",
    "mia_auc_low": "… lower end of its 95 % interval",
    "mia_auc_high": "… upper end of its 95 % interval",
    "entropy_ks": "distance of the entropy distributions; 0 is right",
    "rf_jsd": "divergence from the original on unseen data; should fall",
    "rf_jsd_published": "as the published code computes it (tables show it × 10⁴)",
    "jsd": "divergence from gold on the forget set; see the floor",
    "jsd_published": "as the published code computes it (tables show it × 10⁴)",
    "avg_gap": "mean distance to gold, as published",
    "avg_gap_excess": "mean distance to gold with mia_excess; this decides",
}
_READING = {
    "residual": "the forget set is still recognised",
    "over-forgotten": "the forget set stands out the other way, which gives it away as well",
    "undecided": "the interval is too wide to tell; a larger forget or test set would",
    "indistinguishable": "forgotten and unseen samples look alike to the attack",
}
_APART = ("acc_forget", "acc_test", "mia_auc", "mia_auc_low", "mia_auc_high", "mia_excess")
_SETS = ("forget", "retain", "val", "test", "forgotten_before")


def model_card(stored: Mapping[str, Any]) -> str:
    """The card that belongs to a parsed ``evidence.json`` of schema 2.

    Raises:
        KeyError: a field is missing.
    """
    method, data, metrics, result = stored["method"], stored["data"], stored["metrics"], stored["result"]
    # They rendered the record before it was stored, when a hyperparameter with several values was a tuple.
    recipe = {
        key: str(tuple(value) if isinstance(value, list) else value) for key, value in method["hyperparameters"].items()
    }
    sets = {name.replace("_", " "): data[name] for name in _SETS if data[name]}
    parts = [
        f"# {_text(result['name'])}, version {result['version']}",
        *_summary(stored, recipe),
        "## What was asked",
        "\n".join(map(_request, stored["requests"])),
        "## What was measured",
        _metrics_table(metrics),
        *([_requests_apart(stored)] if len(stored["requests"]) > 1 else []),
        stored["attack"]
        + "\n\n"
        + "\n".join(f"- `{key}`: {_MEANING[key]}" for key in _MEANING if key in metrics["unlearned"]["values"]),
        "## How it was made",
        _table(
            [("method", method["name"]), *recipe.items(), ("seconds", f"{method['seconds']:.1f}")]
            + [("made by", _person(stored["made_by"])), ("run", stored["run"]["id"]), ("made at", stored["created"])]
            + [(key.removeprefix("unlearn."), value) for key, value in (stored["selection"] or {}).items()]
            + list(stored["hardware"].items())
        ),
        "## Data",
        f"`{_text(data['source'])}`, transform `{_text(data['transform'])}`",
        _table([(name, f"{part['samples']} samples, SHA-256 {part['sha256']}") for name, part in sets.items()]),
        "## Limits",
        stored["limits"],
        *(
            ["The source version is a pickle: loading it ran the code that it carries."]
            if stored["source"]["loading_ran_code"]
            else []
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(stored: Mapping[str, Any], recipe: Mapping[str, str]) -> list[str]:
    data, metrics = stored["data"], stored["metrics"]
    before, after = metrics["original"]["values"], metrics["unlearned"]["values"]
    requests = ", ".join(f"`{request_id}`" for request_id in stored["request_ids"])
    cost = after["acc_test"] - before["acc_test"] if "acc_test" in after and "acc_test" in before else None
    word = _membership(metrics["unlearned"])
    told = _READING.get(word) or metrics["unlearned"]["not_computed"].get("mia_auc", "no reason recorded")
    forget, retain = data["forget"]["samples"], data["retain"]["samples"]
    return [
        *([f"**Incomplete: a class is not forgotten** ({stored['incomplete']})."] if stored["incomplete"] else []),
        f"`{stored['source']['uri']}` after unlearning {forget} of {forget + retain} training samples "
        f"(request {requests}) with **{stored['method']['name']}** "
        f"({', '.join(f'{key} = {value}' for key, value in recipe.items())}).",
        *(
            [
                f"**The layers before `{recipe['prefix']}` were frozen:** what they have learned from the forgotten "
                "samples is still in them; see docs/prefix.md."
            ]
            if "prefix" in recipe
            else []
        ),
        f"Membership: {word}: {told}." + (f" Test accuracy changed by {cost:+.4f}." if cost is not None else ""),
    ]


def _request(request: Mapping[str, Any]) -> str:
    filed_by = _person(request["filed_by"]) if request["filed_by"] is not None else "not recorded"
    return (
        f"- `{request['id']}`: {request['samples']} samples of `{request['of']}`, filed "
        f"{request['filed'] or 'at an unknown time'} by {_text(filed_by)}, requester "
        f"{_text(request['requester'] or 'not recorded')}, reason {_text(request['reason'] or 'not recorded')}; "
        f"carried out by `{request['carried_out_by']}`"
    )


def _requests_apart(stored: Mapping[str, Any]) -> str:
    rows = {
        f"request `{r['id']}`": r["metrics"]["unlearned"] for r in stored["requests"] if "unlearned" in r["metrics"]
    }
    if "unlearned" in stored["union"]:
        rows["everything forgotten so far"] = stored["union"]["unlearned"]
    lines = [f"| forget set | membership | {' | '.join(_APART)} |", "|---" * (len(_APART) + 2) + "|"]
    for name, measured in rows.items():
        values = measured["values"]
        cells = [f"{values[key]:.4f}" if key in values else "–" for key in _APART]
        lines.append(f"| {name} | {_membership(measured)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _metrics_table(columns: Mapping[str, Any]) -> str:
    lines = [f"| metric | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for key in _MEANING:
        values = [measured["values"].get(key) for measured in columns.values()]
        if any(value is not None for value in values):
            cells = ["not computed" if value is None else f"{value:.4f}" for value in values]
            lines.append(f"| {key} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _membership(measured: Mapping[str, Any]) -> str:
    low, high = (measured["values"].get(f"mia_auc_{end}") for end in ("low", "high"))
    if low is None or high is None:
        return "not measured"
    if low > 0.5 or high < 0.5:
        return "residual" if low > 0.5 else "over-forgotten"
    return "undecided" if high - low > 0.1 else "indistinguishable"


def _person(person: Mapping[str, Any]) -> str:
    return str(person["name"]) if person["authenticated"] else f"{person['name']} (not authenticated)"


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {_text(key)} | {_text(value)} |" for key, value in rows)])


def _text(value: str) -> str:
    shown = " ".join(value.split())
    for character in "\\`*_{}[]<>()#|!&~":
        shown = shown.replace(character, f"&#{ord(character)};")
    return shown
