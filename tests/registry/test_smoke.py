def test_the_story(store, cli):
    assert cli("request", "--model-uri", "models:/clf/1", "--forget", "random:20%").code == 0
    done = cli("unlearn", "--model-uri", "models:/clf/1")
    assert done.code == 0, done.err
    assert store.versions() == ["1", "2"]
