"""What a scanner is: functions, classes, objects, and how each is called."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from resilient_scan import (
    Breaker,
    Cache,
    Candidate,
    ConfigError,
    InvalidCandidate,
    Limit,
    PluginError,
    Retry,
    ScanContext,
    Scanner,
    Timeout,
    scanner,
)
from resilient_scan.scanning import Code, FunctionScanner, code_of, spec_of

STATE: dict[str, Any] = {"trade_date": "2026-11-24"}
CONTEXT = ScanContext("one")


class Plain:
    """Knows nothing of this package."""

    name = "plain"
    pipeline = "momentum"

    def scan(self, state: dict[str, Any]) -> list[Any]:
        return [state]

    def scan_with_validation(self, state: dict[str, Any]) -> list[Any]:
        raise AssertionError("nobody calls this")


def made_with(scan: Any) -> Any:
    """Return an object scanner with this `scan`."""
    return type("Made", (), {"name": "made", "pipeline": "test", "scan": staticmethod(scan)})()


# functions


def test_a_function_becomes_a_scanner_and_stays_callable() -> None:
    @scanner(pipeline="momentum")
    def market_movers(state: dict[str, Any], scale: int = 1) -> list[Any]:
        """Top gainers."""
        return [state, scale]

    assert isinstance(market_movers, FunctionScanner)
    assert isinstance(market_movers, Scanner)
    assert (market_movers.name, market_movers.pipeline) == ("market_movers", "momentum")
    assert (market_movers.__name__, market_movers.__doc__) == ("market_movers", "Top gainers.")
    assert market_movers.__module__ == __name__
    assert market_movers(STATE, scale=3) == [STATE, 3]
    assert repr(market_movers) == "<scanner market_movers of momentum>"
    assert market_movers.layers == {}
    assert market_movers.candidate is Candidate


def test_a_function_may_have_another_name() -> None:
    made = scanner(pipeline="p", name="with.dots-and_lines9")(lambda state: [])
    assert spec_of(made).name == "with.dots-and_lines9"


def test_a_partial_is_a_function() -> None:
    def scan(limit: int, state: dict[str, Any]) -> list[Any]:
        return [limit, state]

    made = scanner(pipeline="p", name="partial")(functools.partial(scan, 5))
    assert made.__name__ == "partial"
    assert spec_of(made).call(STATE, CONTEXT) == [5, STATE]


LAYERS = {
    "cache": Cache(ttl=5),
    "retry": Retry(attempts=2),
    "breaker": Breaker(failures=2),
    "limit": Limit("sec"),
    "timeout": Timeout(total=5),
}


@pytest.mark.parametrize("layer", list(LAYERS))
def test_a_named_layer_is_kept_and_another_is_the_runners(layer: str) -> None:
    made = scanner(pipeline="p", name="one", **{layer: LAYERS[layer]})(lambda state: [])  # type: ignore[arg-type]
    assert spec_of(made).layers == {layer: LAYERS[layer]}


@pytest.mark.parametrize("layer", ["cache", "retry", "breaker", "limit"])
def test_none_leaves_a_layer_out(layer: str) -> None:
    made = scanner(pipeline="p", name="one", **{layer: None})(lambda state: [])  # type: ignore[arg-type]
    assert spec_of(made).layers == {layer: None}


@pytest.mark.parametrize(
    ("layer", "value", "allowed"),
    [
        ("cache", 300, "a Cache or None"),
        ("retry", Breaker(), "a Retry or None"),
        ("breaker", False, "a Breaker or None"),
        ("limit", "sec", "a Limit or None"),
        ("timeout", None, "a Timeout"),
        ("timeout", 20, "a Timeout"),
    ],
)
def test_a_layer_takes_its_own_options_only(layer: str, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        scanner(pipeline="p", name="one", **{layer: value})(lambda state: [])
    assert str(caught.value) == f"@scanner one: {layer} must be {allowed}, got {value!r}"


# classes and objects


@pytest.mark.parametrize("thing", [Plain, Plain()])
def test_a_plain_class_or_object_works_unchanged(thing: Any) -> None:
    spec = spec_of(thing)
    assert (spec.name, spec.pipeline, spec.layers, spec.candidate) == ("plain", "momentum", {}, Candidate)
    assert spec.call(STATE, CONTEXT) == [STATE]
    assert isinstance(spec.origin, Plain)


def test_layers_and_candidate_are_read_from_attributes() -> None:
    class Own(Plain):
        candidate = dict
        cache = Cache(ttl=5)
        timeout = 20  # its own business: no option object
        retry = Breaker()  # likewise

    assert spec_of(Own).layers == {"cache": Cache(ttl=5)}
    assert spec_of(Own).candidate is dict


def test_a_method_called_candidate_is_its_own_business() -> None:
    class Own(Plain):
        def candidate(self) -> None:
            """Make one."""

    assert spec_of(Own).candidate is Candidate


def test_a_class_that_needs_arguments_is_refused() -> None:
    class Needy(Plain):
        def __init__(self, token: str) -> None:
            self.token = token

    with pytest.raises(PluginError) as caught:
        spec_of(Needy)
    assert str(caught.value).startswith(f"scanner class {Needy.__qualname__} cannot be made without arguments: ")
    assert "'token'" in str(caught.value)
    assert isinstance(caught.value.__cause__, TypeError)
    assert spec_of(Needy("x")).origin.token == "x"


@pytest.mark.parametrize(
    "name", ["", "Upper", "with blank", "x" * 65, "slash/ed", "umläut", "line\n", None, 5, "<lambda>", b"bytes"]
)
def test_a_name_is_checked(name: Any) -> None:
    thing = Plain()
    thing.name = name
    with pytest.raises(PluginError) as caught:
        spec_of(thing)
    assert str(caught.value) == f"scanner {thing!r}: name must be 1 to 64 of a-z, 0-9, '_', '.', '-', got {name!r}"


@pytest.mark.parametrize("name", ["a", "x" * 64, "0", "a_b.c-9"])
def test_these_are_names(name: str) -> None:
    thing = Plain()
    thing.name = name
    assert spec_of(thing).name == name


@pytest.mark.parametrize("pipeline", ["", "  ", None, 5])
def test_a_pipeline_is_checked(pipeline: Any) -> None:
    thing = Plain()
    thing.pipeline = pipeline
    with pytest.raises(PluginError) as caught:
        spec_of(thing)
    assert str(caught.value) == f"scanner plain: pipeline must be a text that is not empty, got {pipeline!r}"
    with pytest.raises(PluginError, match="pipeline must be"):
        scanner(pipeline=pipeline, name="one")(lambda state: [])


def test_a_pipeline_can_be_written_wherever_it_is_a_label() -> None:
    """Half a character, of a folder's name that is not UTF-8, say, made each scrape fail."""
    with pytest.raises(PluginError) as caught:
        scanner(pipeline="caf\udce9", name="one")(lambda state: [])
    assert str(caught.value) == "scanner one: pipeline must be text that UTF-8 can write, got 'caf\\udce9'"


@pytest.mark.parametrize("attributes", [{}, {"scan": 5}])
def test_a_scan_is_needed(attributes: dict[str, Any]) -> None:
    thing = type("Lame", (), {"name": "lame", "pipeline": "p", **attributes})
    with pytest.raises(PluginError) as caught:
        spec_of(thing)
    assert str(caught.value) == "scanner lame: it has no method scan(state) or scan(state, context)"


@pytest.mark.parametrize("thing", [None, 5, "market_movers", lambda state: []])
def test_what_is_no_scanner_at_all_is_refused(thing: Any) -> None:
    with pytest.raises(PluginError, match=r"is not a scanner: it has neither|is a plain function"):
        spec_of(thing)


def test_a_lambda_needs_a_name() -> None:
    with pytest.raises(PluginError, match="got '<lambda>'"):
        scanner(pipeline="p")(lambda state: [])


# arguments


class Callable1:
    def __call__(self, state: Any, context: Any) -> Any:
        return state, context


def with_args(*args: Any) -> Any:
    return args


def keyword(state: Any, *, context: Any) -> Any:
    return state, context


def optional(state: Any, context: Any = None) -> Any:
    return state, context


def required(state: Any, anything: Any) -> Any:
    return state, anything


def own_business(state: Any, limit: int = 5) -> Any:
    return state, limit


def own_keyword(state: Any, *, limit: int = 5) -> Any:
    return state, limit


def positional_only(state: Any, context: Any, /) -> Any:
    return state, context


def state_and_rest(state: Any, *rest: Any, **more: Any) -> Any:
    return state, rest, more


@pytest.mark.parametrize(
    ("scan", "answer"),
    [
        (lambda state: state, STATE),
        (required, (STATE, CONTEXT)),
        (optional, (STATE, CONTEXT)),
        (keyword, (STATE, CONTEXT)),
        (positional_only, (STATE, CONTEXT)),
        (own_business, (STATE, 5)),
        (own_keyword, (STATE, 5)),
        (with_args, (STATE,)),
        (state_and_rest, (STATE, (), {})),
        (Callable1(), (STATE, CONTEXT)),
        (dict, STATE),  # has no signature
    ],
)
def test_a_scan_gets_a_context_if_it_has_a_place_for_it(scan: Callable[..., Any], answer: Any) -> None:
    assert spec_of(made_with(scan)).call(STATE, CONTEXT) == answer


# candidates


def test_a_candidate_has_defaults() -> None:
    one = Candidate("BRK.B", "one", "rose")
    assert (one.priority, one.strategy, one.extras) == ("unknown", "", {})
    assert Candidate("A", "s", "c").extras is not Candidate("A", "s", "c").extras


@pytest.mark.parametrize("ticker", ["", "A B", " A", "A\t", "A\n", "\u00a0", "A\u2009B"])
def test_a_ticker_has_no_blanks(ticker: str) -> None:
    with pytest.raises(InvalidCandidate) as caught:
        Candidate(ticker, "one", "rose")
    assert str(caught.value) == f"candidate.ticker must be a symbol without blanks, got {ticker!r}"


@pytest.mark.parametrize("ticker", ["A", "BRK.B", "^GSPC", "EURUSD=X", "0700.HK", "aapl", "ä"])
def test_these_are_tickers(ticker: str) -> None:
    assert Candidate(ticker, "one", "rose").ticker == ticker


@pytest.mark.parametrize("field", ["ticker", "source", "context", "priority", "strategy"])
@pytest.mark.parametrize("value", [None, 5, b"A", ["A"]])
def test_its_fields_are_text(field: str, value: Any) -> None:
    fields = {"ticker": "A", "source": "s", "context": "c", field: value}
    with pytest.raises(InvalidCandidate) as caught:
        Candidate(**fields)
    assert str(caught.value) == f"candidate.{field} must be text, got {value!r}"


def test_its_extras_are_a_dict() -> None:
    with pytest.raises(InvalidCandidate) as caught:
        Candidate("A", "s", "c", extras=[1])  # type: ignore[arg-type]
    assert str(caught.value) == "candidate.extras must be a dict, got [1]"


def test_it_is_frozen() -> None:
    with pytest.raises(AttributeError):
        Candidate("A", "s", "c").ticker = "B"  # type: ignore[misc]


def test_a_decorator_wants_a_function() -> None:
    with pytest.raises(PluginError, match=r"^@scanner makes a scanner of a function \(state\) .*, got 5$"):
        scanner(pipeline="x")(5)  # type: ignore[arg-type]


# which code a scanner runs


class Feeds:
    """A class with a method that is made a scanner of, and a scanner itself."""

    name, pipeline = "feeds", "p"

    def scan(self, state: Any) -> list[Any]:
        """Find nothing."""
        return []

    def __call__(self, state: Any) -> list[Any]:
        """Find nothing."""
        return []


class Others(Feeds):
    """Inherits what it scans with."""


@pytest.mark.parametrize(
    ("thing", "qualname"),
    [
        (lambda: lambda state: [], "<lambda>.<locals>.<lambda>"),
        (lambda: Feeds().scan, "Feeds.scan"),
        (lambda: Others().scan, "Others.scan"),
        (Feeds, "Feeds"),
        (lambda: functools.partial(functools.partial(found), 1), "found"),
        (lambda: functools.partial(Others().scan), "Others.scan"),
        (lambda: functools.cache(found), "found"),
        (lambda: scanner(pipeline="p")(found), "found"),
    ],
)
def test_code_is_named_as_others_would_import_it(thing: Callable[[], Any], qualname: str) -> None:
    code = scanner(pipeline="p", name="x")(thing()).code
    own = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    assert (code.module, code.qualname, code.version) == (__name__, qualname, own)
    assert spec_of(scanner(pipeline="p", name="x")(thing())).code == code


def found(state: Any, *_: Any) -> list[Any]:
    """Find nothing."""
    return []


def test_code_without_a_source_has_no_version() -> None:
    assert scanner(pipeline="p", name="x")(sorted).code == Code("builtins", "sorted", "")
    assert scanner(pipeline="p", name="x")(msgspec.json.encode).code.version == "", "compiled"
    notebook: dict[str, Any] = {"__name__": "a_cell"}
    exec("def cell(state): return []", notebook)
    assert scanner(pipeline="p")(notebook["cell"]).code == Code("a_cell", "cell", "")


def test_a_classs_version_counts_if_it_is_a_text() -> None:
    assert [spec_of(type("X", (Feeds,), {"version": said})).code.version for said in ("7", "a")] == ["7", "a"]
    for said in ("", 7, None, property(lambda self: 1 / 0)):
        assert len(spec_of(type("X", (Feeds,), {"version": said})).code.version) == 64


@pytest.mark.parametrize("version", ["", 2, b"2", True])
def test_a_version_that_is_no_text_is_refused(version: Any) -> None:
    with pytest.raises(ConfigError, match=r"^@scanner: version must be a text that is not empty, or None, got "):
        scanner(pipeline="p", version=version)


def test_a_modules_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, read = tmp_path / "feed_x.py", []
    module = types.ModuleType("feed_x")
    module.__file__ = str(file)
    monkeypatch.setitem(sys.modules, "feed_x", module)
    bytes_of = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or bytes_of(path))  # type: ignore[func-returns-value]
    feeds = type("Feeds", (), {"__module__": "feed_x"})()
    assert code_of(feeds, None).version == ""
    versions = []
    for text in ("one", "the other"):
        file.write_text(text)
        versions += [code_of(feeds, None).version for _ in range(3)]
    assert read == [file, file]
    assert versions == [hashlib.sha256(text).hexdigest() for text in (b"one", b"the other") for _ in range(3)]


FLEET = """
import multiprocessing, sys
from resilient_scan import scanner

@scanner(pipeline="p")
def one(state):
    return []

def tell(_=None):
    return tuple(one.code.__getattribute__(field) for field in ("module", "qualname", "version"))

if __name__ == "__main__":
    print(tell())
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(tell, [0])[0])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("command", "module"), [(["fleet_x.py"], "__main__"), (["-m", "fleet_x"], "fleet_x")])
def test_all_processes_of_one_deploy_name_their_code_alike(tmp_path: Path, command: list[str], module: str) -> None:
    (tmp_path / "fleet_x.py").write_text(FLEET)
    run = functools.partial(subprocess.run, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    first, second = run([sys.executable, *command]).stdout.splitlines()
    assert first == second
    assert first.startswith(f"('{module}', 'one', '")
    assert len(first) > 64
    if module != "__main__":
        assert first == run([sys.executable, "-c", "import fleet_x; print(fleet_x.tell())"]).stdout.strip()


@pytest.mark.slow
def test_code_in_a_zip_archive_has_a_version(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "code.zip", "w") as archive:
        archive.writestr("fleet_x.py", FLEET)
    command = [sys.executable, "-c", "import fleet_x; print(fleet_x.tell()[2])"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": "code.zip"}, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == hashlib.sha256(FLEET.encode()).hexdigest()
