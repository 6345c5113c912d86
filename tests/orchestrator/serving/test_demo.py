"""The demo's server: what it answers, and what it refuses."""

import asyncio
import io
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from orchestrator.serving import server
from orchestrator.serving.building import build_gallery
from orchestrator.serving.demo import Queries, _spread, panels
from orchestrator.serving.gallery import open_gallery, study_gallery
from orchestrator.serving.photos import find_photos
from orchestrator.serving.server import LARGEST_UPLOAD, MOST, Demo, address_of, listen
from orchestrator.serving.trained import TrainedTrial, open_trial
from orchestrator.session import open_session
from retrieval.errors import InputError
from retrieval.index import Hits


@pytest.fixture(scope="module")
def trained(served_home) -> TrainedTrial:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASYMBENCH_HOME", str(served_home))
        return open_trial(open_session("served", ran=True), "csch")


@pytest.fixture(scope="module")
def client(trained) -> Iterator[TestClient]:
    demo = Demo(panels([trained], [study_gallery(trained)], threads=1), Queries(trained), "::1")
    demo.warm_up()
    yield TestClient(demo.app(), base_url="http://127.0.0.1:8000")
    demo.close()


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG")
    return stream.getvalue()


BYTES = {"Content-Type": "application/octet-stream"}


def bits(packed: np.ndarray) -> str:
    return "".join(map(str, np.unpackbits(packed)))


def test_an_image_gets_the_codes_and_the_neighbours_of_both_networks(client, trained) -> None:
    stored, rows = trained.dataset.images(), trained.rows("query")
    gallery = trained.codes("gallery")
    by_gallery = trained.session.store.read(
        trained.trial.stages["gallery"], "gallery_network_query_codes.npy"
    )
    own = {0: trained.codes("query"), 1: np.load(by_gallery)}
    for place in (0, 7):
        data = png(np.array(stored.array[rows[place]]))
        answer = client.post("/api/search?k=5", content=data, headers=BYTES).json()
        assert answer["classes"] is None and len(answer["panels"]) == 2
        for number, panel in enumerate(answer["panels"]):
            code = own[number][place]
            assert panel["code"] == bits(code)
            apart = np.unpackbits(gallery ^ code, axis=1).sum(axis=1)
            nearest = np.sort(apart)[:5]
            assert [match["distance"] for match in panel["matches"]] == nearest.tolist()
            assert panel["within"] == {
                "distance": nearest[-1],
                "items": int((apart <= nearest[-1]).sum()),
                "right": None,
            }
            for match in panel["matches"]:
                assert apart[match["row"]] == match["distance"]
                assert match["code"] == bits(gallery[match["row"]])
                assert match["right"] is None
            assert panel["encode_ms"] > 0 and panel["search_ms"] > 0


def test_a_test_query_is_judged_by_its_label(client, trained) -> None:
    labels = np.asarray(trained.dataset.index().labels)
    facts = client.get("/api/demo").json()
    offered = facts["queries"]
    assert len(offered) == 24
    rows = trained.rows("query")
    places = [len(rows) * n // 24 for n in range(24)]
    assert offered == [[str(labels[rows[place]])] for place in places]
    gallery_labels, gallery = labels[trained.rows("gallery")], trained.codes("gallery")
    answer = client.post("/api/queries/3/search?k=7").json()
    assert answer["classes"] == offered[3]
    code = trained.codes("query")[places[3]]
    apart = np.unpackbits(gallery ^ code, axis=1).sum(axis=1)
    panel = answer["panels"][0]
    assert panel["code"] == bits(code)
    near = apart <= panel["within"]["distance"]
    right = gallery_labels == int(offered[3][0])
    assert panel["within"]["right"] == int((near & right).sum())
    assert [m["right"] for m in panel["matches"]] == [
        bool(right[m["row"]]) for m in panel["matches"]
    ]


@pytest.mark.parametrize(
    ("classes", "right"),
    [(["3"], {3}), (["3", "7"], {3, 7}), (["cat", "7"], {7}), (["cat"], None), ([], None)],
)
def test_classes_of_another_dataset_are_not_judged(trained, classes, right) -> None:
    """Two trials that are asked the same need not be of one dataset."""
    rows = np.arange(0, 200, 3)
    labels = np.asarray(trained.dataset.index().labels)[trained.rows("gallery")[rows]]
    wanted = None if right is None else sum(label in right for label in labels.tolist())
    assert study_gallery(trained).relevant(rows, classes) == wanted


def test_ties_are_shown_evenly_over_the_gallery() -> None:
    near = Hits(np.arange(100, 111), np.array([0, 1, *[2] * 9]))
    shown = _spread(near, 5)
    assert shown.rows.tolist() == [100, 101, 102, 105, 108]
    assert shown.distances.tolist() == [0, 1, 2, 2, 2]
    assert _spread(near, 11).rows.tolist() == near.rows.tolist()


def test_images_are_served_by_row(client, trained) -> None:
    stored = trained.dataset.images()
    for path, row in (("/queries/0.jpg", trained.rows("query")[0]),
                      ("/gallery/1/5.jpg", trained.rows("gallery")[5])):  # fmt: skip
        response = client.get(path)
        assert response.headers["content-type"] == "image/jpeg"
        shown = np.asarray(Image.open(io.BytesIO(response.content)), np.int64)
        assert shown.shape == stored.array[row].shape
        assert np.abs(shown - stored.array[row]).mean() < 8  # a JPEG of it


def test_the_page_is_whole_and_says_what_may_be_loaded(client) -> None:
    page = client.get("/")
    assert "Choose an image" in page.text and "//" not in page.text.replace("<!DOCTYPE", "")
    for path in ("/", "/style.css", "/demo.css", "/demo.js", "/api/demo"):
        response = client.get(path)
        assert response.status_code == 200
        check_headers(response)


def check_headers(response) -> None:
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/queries/24.jpg", 404),
        ("GET", "/gallery/2/0.jpg", 404),
        ("GET", "/gallery/0/999999999.jpg", 404),
        ("GET", "/gallery/0/-1.jpg", 404),
        ("GET", "/gallery/0/..%2f..%2fetc%2fpasswd.jpg", 404),
        ("GET", f"/gallery/0/{'9' * 5000}.jpg", 404),  # more than Python takes for a number
        ("GET", f"/queries/{'9' * 5000}.jpg", 404),
        ("GET", "/gallery/0/%D9%A1.jpg", 404),  # an Arabic 1
        ("GET", "/style.css/", 404),
        ("GET", "/nothing/of/it", 404),
        ("GET", "/style.css/../server.py", 404),
        ("GET", "/../server.py", 404),
        ("GET", "/api/search", 405),
        ("PUT", "/api/search", 405),
        ("DELETE", "/", 405),
        ("OPTIONS", "/api/search", 405),
        ("POST", "/", 405),
        ("POST", "/api/queries/24/search", 404),
        ("POST", "/api/queries/0/search?k=0", 400),
        ("POST", f"/api/queries/0/search?k={MOST + 1}", 400),
        ("POST", "/api/queries/0/search?k=ten", 400),
        ("POST", "/api/queries/0/search?k=٣", 400),
    ],
)
def test_what_is_not_there_is_not_answered(client, method, path, status) -> None:
    response = client.request(method, path, follow_redirects=False)
    assert response.status_code == status
    check_headers(response)


@pytest.mark.parametrize(
    ("content", "kind", "status", "says"),
    [
        (b"", "image/png", 400, "nothing was sent"),
        (b"no image", "image/png", 422, "cannot be read as an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "image/x-eps", 422, "cannot be read as an image"),
        (png(np.zeros((4, 4, 3), np.uint8)), "text/plain", 415, "send the bytes"),
        (b"a=b", "application/x-www-form-urlencoded", 415, "send the bytes"),
    ],
)
def test_uploads_that_are_no_image_are_refused(client, content, kind, status, says) -> None:
    response = client.post("/api/search", content=content, headers={"Content-Type": kind})
    assert response.status_code == status and says in response.json()["error"]


def test_uploads_that_are_too_large_are_refused(client) -> None:
    big = client.post("/api/search", content=b"x" * (LARGEST_UPLOAD + 1), headers=BYTES)
    assert big.status_code == 413
    # 15,000 x 15,000 pixels in some kilobytes: a decompression bomb.
    stream = io.BytesIO()
    Image.new("1", (15_000, 15_000)).save(stream, format="PNG")
    assert len(stream.getvalue()) < 2**20
    bomb = client.post("/api/search", content=stream.getvalue(), headers=BYTES)
    assert bomb.status_code == 422 and "exceeds limit" in bomb.json()["error"]


@pytest.mark.parametrize(("patience", "status"), [(60.0, 400), (0.02, 408)])
def test_an_upload_that_stops_is_given_up(client, monkeypatch, patience, status) -> None:
    """Its sender leaves, or stays and sends nothing more."""
    monkeypatch.setattr(server, "_PATIENCE", patience)
    said = []

    async def receive():
        if not said:
            said.append("some")
            return {"type": "http.request", "body": b"some", "more_body": True}
        if status == 408:
            await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message):
        said.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"image/png")]
    scope = {"type": "http", "method": "POST", "path": "/api/search", "headers": headers}
    asyncio.run(client.app({**scope, "query_string": b""}, receive, send))
    assert said[1]["status"] == status and b"did not arrive" in said[2]["body"]


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("127.0.0.1:8000", True),
        ("localhost:8000", True),
        ("LOCALHOST", True),
        ("[::1]:8000", True),
        ("192.168.1.7:8000", True),  # an address is looked up nowhere
        (f"{socket.gethostname()}:8000", True),
        ("evil.example:8000", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("", False),
        ("[", False),
        ("[::1", False),
        ("[localhost]:8000", False),
        ("user@127.0.0.1", False),
    ],
)
def test_a_name_that_was_pointed_here_is_not_answered(client, host, answered) -> None:
    asked = [("GET", "/"), ("GET", "/gallery/0/0.jpg"), ("POST", "/api/search"), ("GET", "/no")]
    for method, path in asked:
        response = client.request(method, path, headers={"Host": host})
        assert (response.status_code != 421) == answered
        check_headers(response)


@pytest.mark.parametrize(
    ("origin", "answered"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://127.0.0.1:9000", False),
        ("https://evil.example", False),
        ("null", False),
        ("http://[", False),
        ("", False),
    ],
)
def test_pages_of_other_sites_cannot_ask(client, origin, answered) -> None:
    response = client.post("/api/queries/0/search", headers={"Origin": origin})
    assert response.status_code == (200 if answered else 403)


def test_two_trials_stand_next_to_each_other(in_home, trained) -> None:
    other = open_trial(open_session("served", ran=True), "daph")
    two = [trained, other]
    shown = panels(two, [study_gallery(one) for one in two], threads=1)
    assert [panel.title for panel in shown] == [one.trial.label for one in two]
    assert [panel.side for panel in shown] == ["query", "query"]
    image = np.array(trained.dataset.images().array[trained.rows("query")[0]])
    for panel, one in zip(shown, two, strict=True):
        assert panel.answer(image, 3, None)["code"] == bits(one.codes("query")[0])


def test_images_of_ones_own_are_shown_and_have_no_class(trained, tmp_path) -> None:
    for n in range(3):
        image = np.full((20, 30, 3), 60 * n, np.uint8)
        Image.fromarray(image).save(tmp_path / f"{n}.png")
    photos = find_photos([str(tmp_path / f"{n}.png") for n in range(3)])
    build_gallery(trained, photos, tmp_path / "own")
    gallery = open_gallery(tmp_path / "own", trained)
    demo = Demo(panels([trained], [gallery], threads=1), Queries(trained), "127.0.0.1")
    client = TestClient(demo.app(), base_url="http://127.0.0.1")
    answer = client.post("/api/queries/0/search?k=10").json()
    for panel in answer["panels"]:
        assert {match["row"] for match in panel["matches"]} == {0, 1, 2}
        assert panel["within"]["items"] == 3 and panel["within"]["right"] is None
        assert all(match["right"] is None for match in panel["matches"])
    shown = np.asarray(Image.open(io.BytesIO(client.get("/gallery/0/1.jpg").content)))
    assert shown.shape == (20, 30, 3) and abs(int(shown.mean()) - 60) <= 1
    (tmp_path / "1.png").unlink()
    gone = client.get("/gallery/0/1.jpg")
    assert gone.status_code == 404 and "cannot be read any more" in gone.json()["error"]
    demo.close()


# ---- the command ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["csch", "daph", "csch"], "one trial, or two"),
        (["csch", "--index", "a", "--index", "b"], "one for all"),
        (["csch", "--host", "no.such.host.invalid"], "is no host"),
        (["csch", "--host", ""], "--host: must be a name or an address"),
        (["csch", "--host", "203.0.113.7"], "is no address of this machine"),
        (["csch", "--port", "70000"], "--port"),
        (["nothing like it"], "TRIAL"),
        (["csch", "--index", "nowhere"], "there is no index"),
        (["csch", "--device", "cup"], "did you mean 'cpu'"),
        ([], "Missing argument"),
    ],
)
def test_mistakes_end_with_2_and_one_message(in_home, asymbench, args, says, monkeypatch) -> None:
    monkeypatch.setattr(server, "serve", lambda *_: pytest.fail("it serves"))
    told = asymbench("demo", *args)
    assert told.code == 2 and says in told.err


def test_a_port_in_use_is_said(in_home, asymbench) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        told = asymbench("demo", "csch", "--port", str(port))
        assert told.code == 2 and "cannot listen there" in told.err and "--port 0" in told.err
        assert address_of(taken) == f"http://127.0.0.1:{port}/"


def test_a_socket_of_nowhere_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        listen("203.0.113.7", 0)  # of a block that no machine has
    assert caught.value.key == "--host"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_the_server_runs_until_it_is_interrupted(in_home, number, code) -> None:
    command = [sys.executable, "-m", "orchestrator.cli", "demo", "served:csch", "--device", "cpu"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[0]
            assert url.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(f"{url}api/demo") as response:
                assert b"panels" in response.read()
            with pytest.raises(urllib.error.HTTPError, match="421"):
                urllib.request.urlopen(
                    urllib.request.Request(url, headers={"Host": "evil.example"})
                )
            process.send_signal(number)
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == code
    assert "Traceback" not in error
