"""`exposure`: where the data of a version's requests still lives, as far as server and machine can tell."""

from mlflow_unlearn import config
from mlflow_unlearn.console import counted, say
from mlflow_unlearn.errors import Refused
from mlflow_unlearn.governance.holders import forgotten_by
from mlflow_unlearn.governance.places import UNSEEN, Places, elsewhere, look, rows
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.versions import registered_version
from mlflow_unlearn.registry.walk import walk
from mlflow_unlearn.report import table


def exposure(options: config.Exposure) -> Places:
    """Print every version, LoggedModel, run and cache entry that may hold what the version's requests name.

    Raises:
        Refused: the server stopped to answer on the way.
    """
    with tracking.read_only_client() as client:
        target = registered_version(client, options.model_uri)
        wanted = forgotten_by(client, target)
        places = look(client, walk(client), wanted)
    named = [
        f"{', '.join(one.requests)} ({counted(len(one.samples.ids), 'sample')} of {', '.join(one.about)})"
        for one in wanted
    ]
    table.show_places(f"Forget requests: {', '.join(named)}", rows(places), elsewhere(places))
    say(UNSEEN)
    if places.unanswered is not None:
        raise Refused(
            f"the search is incomplete, since the server did not answer ({places.unanswered}): run it again", places
        )
    return places
