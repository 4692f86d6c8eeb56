"""What is claimed beyond the figures: what was trained again for it and what stayed, for those who decide on it."""

from mlflow_unlearn.evidence.record import Exactness


def trained_again(claim: Exactness) -> list[tuple[str, str]]:
    """Shards, steps and checkpoints as term and value; nothing where no training was gone back on."""
    if not claim.steps_from_scratch:
        return []
    again, stay = claim.retrained, claim.untouched
    rows = []
    if again or stay:
        where = ", ".join(f"shard {shard} from {begins(slices)}" for shard, slices in again.items())
        rows = [
            ("trained again", f"{len(again)} of {len(again) + len(stay)} shards{where and f': {where}'}"),
            ("as in the source", f"{len(stay)} of them, by the digests of their weights" if stay else "none of them"),
        ]
    share = claim.steps / claim.steps_from_scratch
    return [
        *rows,
        ("steps", f"{claim.steps:,} of {claim.steps_from_scratch:,} from scratch ({share:.1%})"),
        ("checkpoints kept", f"{claim.checkpoints:,}"),
    ]


def begins(slices: int) -> str:
    """Where a shard was taken back to, of which so many slices stayed.

    >>> begins(0), begins(2)
    ('its start', 'slice 3')
    """
    return f"slice {slices + 1}" if slices else "its start"


def shards(claim: Exactness) -> list[tuple[str, str, str | None]]:
    """Each shard of an ensemble in order: its number, what was done, and the digest of weights that stay."""
    rows: list[tuple[str, str, str | None]] = [
        (shard, f"trained again from {begins(slices)}", None) for shard, slices in claim.retrained.items()
    ]
    rows += [(shard, "as in the source", digest) for shard, digest in claim.untouched.items()]
    return sorted(rows, key=lambda row: (len(row[0]), row[0]))
