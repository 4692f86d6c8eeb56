"""`exposure`: where forgotten data still lives; it makes no run and changes nothing."""

from stores import call


def test_every_version_with_its_aliases_and_endpoints(chain):
    chain.client.set_model_version_tag("clf", "1", "unlearn.endpoint.edge", "https://edge.example.com")
    before, runs = chain.everything_registered(), len(chain.runs())
    done = call("exposure", "--model-uri", "models:/clf/4")
    assert done.code == 0, done.err
    rows = {line.split("│")[1].strip(): line for line in done.out.splitlines() if line.startswith("│ models:/")}
    assert "holds it" in rows["models:/clf/1"] and "edge" in rows["models:/clf/1"]
    assert "forgot it" in rows["models:/clf/4"]
    assert "Not seen from here: downloads, backups" in done.out
    assert (chain.everything_registered(), len(chain.runs())) == (before, runs)
    chain.client.delete_model_version_tag("clf", "1", "unlearn.endpoint.edge")
