"""Who may ask: keys, rates, origins, lengths; and what the server says of itself."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from nextscale.cli import main
from nextscale.serve.keys import Rates, name_of, new_key, read_keys
from nextscale.serve.running import is_loopback
from serving_for_tests import WAIT, Gate, Running, running


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(max_body=2000) as started:
        yield started


def ask(
    server: Running, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=WAIT)
    try:
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        with contextlib.suppress(BrokenPipeError):  # it may answer before it heard all
            connection.request(method, path, body, named)
        answer = connection.getresponse()
        return answer.status, {name.lower(): text for name, text in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def generate(server: Running, **headers: str) -> tuple[int, dict[str, str], bytes]:
    body = json.dumps({"prompt": "frog"})
    return ask(server, "POST", "/v1/images/generations", body, Content_Type="application/json", **headers)


def test_keys_are_hashed_and_found(tmp_path: Path) -> None:
    (key, line), (other, second) = new_key("alice"), new_key("bob")
    assert key != other and key not in line
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\n{line}  # since May\n{second}\n")
    keys = read_keys(file)
    assert (name_of(key, keys), name_of(other, keys)) == ("alice", "bob")
    assert name_of(key[:-1], keys) is None and name_of("", keys) is None and name_of("é", keys) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alice", r"line 1: expected NAME:SHA256"), ("# nobody\n", r"holds no key: make one with"),
        (f"a:{'0' * 64}\na:{'1' * 64}", r"line 2: a second key of the name 'a'"),
        (f"a b:{'0' * 64}", r"line 1: expected NAME:SHA256"),
    ],
)  # fmt: skip
def test_files_of_keys_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_keys(tmp_path / "keys")


def test_rates_fill_evenly() -> None:
    rates = Rates(60)
    assert [rates.take("a", 0.0) for _ in range(60)] == [0.0] * 60
    assert rates.take("a", 0.0) == pytest.approx(1.0) and rates.take("b", 0.0) == 0
    assert rates.take("a", 0.5) == pytest.approx(0.5) and rates.take("a", 1.0) == 0
    assert all(Rates(0).take("a", 0.0) == 0 for _ in range(1000))


def test_only_who_has_a_key_may_ask(tmp_path: Path) -> None:
    key, line = new_key("alice")
    (tmp_path / "keys").write_text(line)
    with running(keys=tmp_path / "keys", rate=2) as server:
        with server.client("wrong") as client, pytest.raises(openai.AuthenticationError) as refused:
            client.images.generate(prompt="frog")
        assert refused.value.code == "invalid_api_key"
        assert generate(server)[0] == 401 and generate(server, Authorization=key)[0] == 401
        assert generate(server, Authorization=f"Basic {key}")[0] == 401
        assert ask(server, "GET", "/v1/models")[0] == 401 and ask(server, "GET", "/api/model")[0] == 401
        assert ask(server, "GET", "/readyz")[0] == 200
        with server.client(key) as client:
            assert client.models.list().data[0].id == "small"
            for _ in range(2):
                assert client.images.generate(prompt="frog").data
            with pytest.raises(openai.RateLimitError, match=r"more than 2 requests a minute") as late:
                client.images.generate(prompt="frog")
            assert 1 <= int(late.value.response.headers["retry-after"]) <= 30
            assert client.models.list().data


def test_what_the_page_sends_is_counted_too() -> None:
    with running(rate=2) as server:
        asked = [ask(server, "POST", "/page/gradio_api/queue/join", "{}")[0] for _ in range(3)]
        assert asked == [404, 404, 429], "there is no page here, but the guard does not know"


def test_without_keys_other_sites_may_not_ask(server: Running) -> None:
    assert generate(server)[0] == 200
    status, _, body = generate(server, Host="pictures.example")
    assert status == 403 and b"127.0.0.1 and localhost only" in body
    status, _, body = generate(server, Origin="https://pictures.example")
    assert status == 403 and b"pages of https://pictures.example may not ask" in body
    assert generate(server, Origin=server.url)[0] == 200
    assert ask(server, "GET", "/", Host="pictures.example")[0] == 403


def test_lengths_are_limited_before_and_while_they_come(server: Running) -> None:
    long = json.dumps({"prompt": "x" * 3000}).encode()
    for body in (long, iter([long[:1500], long[1500:]])):  # an iterator goes without a length
        status, _, answer = ask(
            server, "POST", "/v1/images/generations", body, Content_Type="application/json"
        )  # fmt: skip
        assert status == 413 and json.loads(answer)["error"]["code"] == "too_large"
    form = iter(
        [b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n', b"y" * 3000, b"\r\n--x--\r\n"]
    )
    status, _, answer = ask(
        server, "POST", "/v1/images/edits", form, Content_Type="multipart/form-data; boundary=x"
    )  # fmt: skip
    assert status == 413 and json.loads(answer)["error"]["code"] == "too_large"
    assert generate(server, Content_Length="-1")[0] in (400, 413)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", r"the body is no JSON"), (b"[]", r"the body"), (b"", r"the body"),
        (b'{"prompt": "frog", "guidance": NaN}', r"guidance nan"),
        (b'{"prompt": "frog", "seed": 1e300}', r"seed"), (b"\xff\xfe", r"the body|body"),
        (b'{"prompt": 3}', r"prompt 3"), (b'{"prompt": "frog", "seed": ' + b"9" * 1000 + b"}", r"seed"),
    ],
)  # fmt: skip
def test_bodies_that_are_none(server: Running, body: bytes, message: str) -> None:
    status, _, answer = ask(server, "POST", "/v1/images/generations", body, Content_Type="application/json")
    error = json.loads(answer)["error"]
    assert status == 400 and error["type"] == "invalid_request_error"
    assert message.split("|")[0] in error["message"] or message.split("|")[-1] in error["message"]


def test_paths_and_methods_that_are_none(server: Running) -> None:
    assert ask(server, "GET", "/v1/chat/completions")[0] == 404
    status, _, body = ask(server, "GET", "/v1/images/generations")
    assert status == 405 and json.loads(body)["error"]["message"]


def test_health_and_headers() -> None:
    gate = Gate()
    with running(gate=gate) as server:
        status, headers, body = ask(server, "GET", "/readyz")
        assert (status, json.loads(body)) == (200, {"status": "ready"})
        assert headers["x-content-type-options"] == "nosniff" and "server" not in headers
        assert json.loads(ask(server, "GET", "/healthz")[2]) == {"status": "alive"}
        server.engine.drain(WAIT)
        status, _, body = ask(server, "GET", "/readyz")
        assert (status, json.loads(body)) == (503, {"status": "closing down"})
        status, _, body = generate(server)
        assert status == 503 and json.loads(body)["error"]["code"] == "closing_down"


def test_metrics_count_what_happens(server: Running) -> None:
    with server.client() as client:
        client.images.generate(prompt="frog", n=3)
        list(client.images.generate(prompt="frog", stream=True, partial_images=3))
        with pytest.raises(openai.BadRequestError):
            client.images.generate(prompt="frogg")
    ask(server, "GET", "/made/up")
    text = ask(server, "GET", "/metrics")[2].decode()
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    answered = 'nextscale_requests_total{route="/v1/images/generations",status="%d"}'
    assert float(lines[answered % 200]) >= 2 and float(lines[answered % 400]) >= 1
    assert float(lines['nextscale_requests_total{route="other",status="404"}']) >= 1
    assert "/made" not in text
    assert float(lines['nextscale_orders_total{end="finished"}']) >= 2
    assert float(lines["nextscale_first_preview_seconds_count"]) >= 1
    assert float(lines["nextscale_queued_images"]) == 0
    assert float(lines["nextscale_batch_images_sum"]) >= 4


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("a.b", False),
    ],
)
def test_addresses_of_this_machine(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", r"give a model to serve"),
        ("cifar10-tiny --host 0.0.0.0", r"lets other machines ask: give --keys"),
        ("cifar10-tinny", r"cifar10-tiny"), ("cifar10-tiny --port 70000", r"--port 70000"),
        ("cifar10-tiny --keys nowhere", r"no file of keys 'nowhere'"),
        ("cifar10-tiny --max-batch 0", r"--max-batch 0"), ("cifar10-tiny --replicas 2", r"without --ray"),
        ("cifar10-tiny --ray --replicas 4-1", r"expected their number"),
        ("cifar10-tiny --ray --page yes", r"--page yes does not go with --ray"),
        ("--new-key 'a b'", r"key name"),
    ],
)  # fmt: skip
def test_what_the_command_refuses(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import shlex

    monkeypatch.chdir(tmp_path)
    assert main(["serve", *shlex.split(arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_a_new_key_is_shown_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["serve", "--new-key", "alice"]) == 0
    shown = capsys.readouterr()
    (tmp_path / "keys").write_text(shown.out)
    assert name_of(shown.err.split()[-1], read_keys(tmp_path / "keys")) == "alice"
