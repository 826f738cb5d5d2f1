"""Options: argument over environment over default, with provenance."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fuseline import Config, FuselineError
from fuseline.config import unknown_variables


def origin(config: Config, name: str) -> str:
    return next(source.origin for source in config.sources() if source.name == name)


def test_defaults() -> None:
    config = Config()
    assert (config.target, config.graphs, config.disable) == ("auto", "auto", ())
    assert config.dynamic is None
    assert config.threads is None
    assert not config.strict
    assert origin(config, "strict") == "default"


def test_argument_over_environment_over_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSELINE_VERIFY", "1")
    monkeypatch.setenv("FUSELINE_DISABLE", "cse, fuse-qk-norm")
    config = Config(verify=False)
    assert not config.verify
    assert origin(config, "verify") == "argument"
    assert config.disable == ("cse", "fuse-qk-norm")
    assert origin(config, "disable") == "environment"


def test_an_argument_equal_to_the_variable_is_still_an_argument(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FUSELINE_TARGET", "cpu")
    assert origin(Config(target="cpu"), "target") == "argument"


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSELINE_THREADS", "")
    assert origin(Config(), "threads") == "default"


def test_replace_keeps_where_the_rest_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSELINE_STRICT", "yes")
    config = Config(threads=2).replace(verify=True)
    assert (config.strict, config.threads, config.verify) == (True, 2, True)
    assert origin(config, "strict") == "environment"
    assert origin(config, "threads") == "argument"
    assert origin(config, "graphs") == "default"


def test_paths_are_absolute_and_know_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("FUSELINE_DUMP", "~/dump")
    assert Config().dump_dir == Path("/home/someone/dump")


def test_several_paths_in_one_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("FUSELINE_CACHE_BASE", "~/one:/two::/two")
    both = (Path("/home/someone/one"), Path("/two"))
    assert Config().cache_base == both
    assert Config.of({"cache_base": ["~/one", Path("/two")]}).cache_base == both
    assert Config.of({"cache_base": Path("/two")}).cache_base == (Path("/two"),)
    assert Config.of({"cache_base": ()}).cache_base == ()


def test_equal_options_are_equal_wherever_they_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSELINE_THREADS", "3")
    assert Config() == Config(threads=3)
    assert hash(Config()) == hash(Config(threads=3))


def test_every_option_has_one_variable_of_its_own() -> None:
    sources = Config().sources()
    assert {source.name for source in sources} == {
        field.name for field in dataclasses.fields(Config) if field.init
    }
    assert len({source.variable for source in sources}) == len(sources)
    assert all(source.variable.startswith("FUSELINE_") and source.help for source in sources)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("FUSELINE_TARGET", "tpu"),
        ("FUSELINE_DYNAMIC", "perhaps"),
        ("FUSELINE_THREADS", "0"),
        ("FUSELINE_THREADS", "two"),
        ("FUSELINE_FUSE_LIMIT", "-1"),
        ("FUSELINE_TOLERANCE", "nan"),
        ("FUSELINE_TOLERANCE", "0"),
        ("FUSELINE_LOG", "loud"),
        ("FUSELINE_VERIFY", "maybe"),
    ],
)
def test_a_wrong_variable_is_named(
    variable: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(FuselineError, match=f"FL0101 .*{variable}: found '{text}'"):
        Config()


@pytest.mark.parametrize(
    "options",
    [
        {"verify": 1.5},
        {"threads": True},
        {"threads": 1.5},
        {"disable": 3},
        {"eager": [1]},
        {"cache_dir": 7},
        {"cache_dir": ""},
        {"cache_base": 7},
        {"cache_base": [None]},
        {"cache_base": [""]},
        {"log": "loud"},
        {"tolerance": True},
    ],
)
def test_a_wrong_argument_is_named(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(FuselineError, match=rf"FL0101 .*{name} in Config\({name}=...\)"):
        Config.of(options)


def test_misspelt_variables_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSELINE_TREADS", "2")
    assert unknown_variables() == ("FUSELINE_TREADS",)
