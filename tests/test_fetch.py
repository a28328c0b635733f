"""Downloads from a server on loopback: checksums, resuming, refusals, what the command says."""

import hashlib
import stat
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from derm_rl import paths
from derm_rl.__main__ import app
from derm_rl.data import fetch
from derm_rl.data.fetch import FetchError
from derm_rl.data.open_access import reading as open_access

CONTENT = {
    "metadata.csv": b"img_id\nx.png\n" * 1000,
    "images/part_1.zip": bytes(range(256)) * 2000,
    "images/part_2.zip": b"\x1f\x8b" + b"z" * 10,
}


class Server(ThreadingHTTPServer):
    """Serves ``files``; ``faults`` says what to do with the next requests for a file."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(CONTENT)
        self.faults: dict[str, list[str]] = {}
        self.asked: Counter[str] = Counter()
        self.packed_allowed = False

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server, name = self.server, self.path.lstrip("/")
        server.asked[name] += 1
        server.packed_allowed |= "gzip" in self.headers.get("Accept-Encoding", "")
        fault = server.faults.get(name, [])
        now = fault.pop(0) if fault else ""
        if now.isdigit() or name not in server.files:
            self.send_error(int(now or 404))
            return
        body = server.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if now == "cut" else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch, "_WAIT", 0.01)
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def entries(server: Server) -> dict[str, dict[str, str]]:
    return {n: {"url": server.url(n), "sha256": sha(c)} for n, c in CONTENT.items()}


def listing(server: Server) -> fetch.Listing:
    return fetch.Listing(files={n: fetch.Remote(**e) for n, e in entries(server).items()})


def files_in(folder: Path) -> set[str]:
    return {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}


# --- the set ------------------------------------------------------------------------------------


def test_a_set_is_fetched_and_resumed(server, tmp_path):
    root = tmp_path / "new" / "set"
    done = fetch.fetch(listing(server), root, progress=False)
    assert done == dict.fromkeys(CONTENT, "fetched")
    assert {n: (root / n).read_bytes() for n in CONTENT} == CONTENT
    assert files_in(root) == set(CONTENT)  # nothing else
    assert stat.S_IMODE((root / "metadata.csv").stat().st_mode) & 0o044  # as any other file
    (root / "images" / "part_1.zip").unlink()
    (root / "images" / "part_2.zip").write_bytes(b"half")
    done = fetch.fetch(listing(server), root, progress=False)
    assert done == {
        "metadata.csv": "there", "images/part_1.zip": "fetched", "images/part_2.zip": "fetched",
    }  # fmt: skip
    assert server.asked == {"metadata.csv": 1, "images/part_1.zip": 2, "images/part_2.zip": 2}
    assert {n: (root / n).read_bytes() for n in CONTENT} == CONTENT
    assert not server.packed_allowed  # the checksum is of the file as it is stored


def test_a_wrong_checksum_names_the_file_and_leaves_nothing(server, tmp_path):
    bad = server.files["images/part_1.zip"] = b"something else"
    with pytest.raises(FetchError) as error:
        fetch.fetch(listing(server), tmp_path, progress=False)
    message = str(error.value)
    assert message.startswith("images/part_1.zip: wrong checksum")
    assert sha(CONTENT["images/part_1.zip"]) in message and sha(bad) in message
    assert files_in(tmp_path) == {"metadata.csv"}
    assert server.asked["images/part_1.zip"] == 1  # that would be the same again
    (tmp_path / "images" / "part_1.zip").write_bytes(b"what was there")
    with pytest.raises(FetchError):
        fetch.fetch(listing(server), tmp_path, progress=False)
    assert (tmp_path / "images" / "part_1.zip").read_bytes() == b"what was there"
    server.files.update(CONTENT)
    assert fetch.fetch(listing(server), tmp_path, progress=False)["metadata.csv"] == "there"
    assert files_in(tmp_path) == set(CONTENT)


def test_passing_faults_are_tried_again(server, tmp_path):
    server.faults = {"metadata.csv": ["503", "429"], "images/part_1.zip": ["cut", "500"]}
    fetch.fetch(listing(server), tmp_path, progress=False)
    assert server.asked == {"metadata.csv": 3, "images/part_1.zip": 3, "images/part_2.zip": 1}
    assert {n: (tmp_path / n).read_bytes() for n in CONTENT} == CONTENT


def test_lasting_faults_are_not(server, tmp_path):
    server.faults = {"metadata.csv": ["404"]}
    with pytest.raises(FetchError, match=r"metadata.csv: http://127.* cannot be had .*404"):
        fetch.fetch(listing(server), tmp_path, progress=False)
    assert server.asked["metadata.csv"] == 1
    server.faults = {"metadata.csv": ["cut"] * fetch.TRIES}
    with pytest.raises(FetchError, match="metadata.csv: .* cannot be had"):
        fetch.fetch(listing(server), tmp_path, progress=False)
    assert files_in(tmp_path) == set()


def test_nobody_there(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "_WAIT", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    remote = fetch.Remote(url="http://127.0.0.1:9/x", sha256="0" * 64)
    with pytest.raises(FetchError, match="x.zip: http://127.0.0.1:9/x cannot be had"):
        fetch.fetch(fetch.Listing(files={"x.zip": remote}), tmp_path, progress=False)


def test_the_progress_bar_names_the_file(server, tmp_path, capsys):
    fetch.fetch(listing(server), tmp_path, progress=True)
    shown = capsys.readouterr().err
    assert "images/part_1.zip: 100%" in shown and "512k/512k" in shown


def test_a_link_out_of_the_folder_is_refused(server, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "images").symlink_to(outside)
    with pytest.raises(FetchError, match="images/part_1.zip: .* leads out of"):
        fetch.fetch(listing(server), tmp_path / "set", progress=False)
    assert files_in(outside) == set()


def test_a_folder_in_the_place_of_a_file(server, tmp_path):
    (tmp_path / "metadata.csv").mkdir()
    with pytest.raises(FetchError, match="metadata.csv: cannot be written to"):
        fetch.fetch(listing(server), tmp_path, progress=False)


# --- the registry -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/x", "a/../../x", "a//b", "./x", "", "..", "a\\b", "C:x", "~/x", "a/", "a\x00b",
     "a\nb", " x", "x.", "a /b"],
)  # fmt: skip
def test_names_that_could_lead_elsewhere_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match="no safe name"):
        fetch.check_name(name)
    remote = {"url": "http://127.0.0.1/x", "sha256": "0" * 64}
    file = tmp_path / "registry.yaml"
    file.write_text(yaml.safe_dump({"scin": {"files": {name: remote}}}))
    with pytest.raises(FetchError, match="registry.yaml: scin: files: .*no safe name"):
        fetch.read_registry(file)
    unchecked = fetch.Listing.model_construct(files={name: fetch.Remote(**remote)})
    with pytest.raises(ValueError, match="no safe name"):
        fetch.fetch(unchecked, tmp_path / "set", progress=False)


def test_names_that_are_fine():
    for name in ("x", "images/part_1.zip", "皮膚/é.png", "a b/c.d.e", "..x", "-1.png"):
        fetch.check_name(name)


SHA = "0" * 63 + "A"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "expected names of sources"),
        ("", "expected names of sources"),
        ("3: {}", "expected names of sources"),
        ("a: [", "not a registry that can be read"),
        ("a: !!python/object/apply:os.system [ls]", "not a registry that can be read"),
        ("scin: {file: {}}", "scin: file: Extra inputs are not permitted"),
        ("scin: {files: {x: {url: 'http://h/x'}}}", "scin: files: x: sha256: Field required"),
        ("scin: {files: {x: {url: 'http://h/x', sha256: 12}}}", "x: sha256: .*string; got 12"),
        (f"scin: {{files: {{x: {{url: 'file:///etc/passwd', sha256: {SHA}}}}}}}", "x: url: "),
        (f"scin: {{files: {{x: {{url: 'http://', sha256: {SHA}}}}}}}", "x: url: "),
        ("scin: {files: {x: {url: 'http://h/x', sha256: abc}}}", "x: sha256: .*pattern"),
        ("scin: 5", "scin: .*got 5"),
    ],
)
def test_a_registry_that_is_none(tmp_path, content, message):
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(FetchError, match=f"mine.yaml: .*{message}"):
        fetch.read_registry(file)


def test_files_that_would_replace_one_another(tmp_path):
    remote = {"url": "http://h/x", "sha256": SHA}
    for names in (["a", "A"], ["a", "a/b"]):
        file = tmp_path / "r.yaml"
        file.write_text(yaml.safe_dump({"scin": {"files": dict.fromkeys(names, remote)}}))
        with pytest.raises(FetchError, match="there twice, or is also the folder"):
            fetch.read_registry(file)


def test_a_registry_that_is_absent(tmp_path):
    with pytest.raises(FetchError, match="absent.yaml: not a registry that can be read"):
        fetch.read_registry(tmp_path / "absent.yaml")


def test_the_registry_of_the_package_has_every_source():
    registry = fetch.read_registry()
    assert set(registry) == set(open_access.SOURCES)
    for name, found in registry.items():
        assert found.files or found.obtain, name


def test_sources_by_name():
    registry = fetch.read_registry()
    about, found = fetch.select("PAD-UFES-20", registry)
    assert about.name == "pad_ufes_20" and found.obtain
    assert fetch.select("scin", {})[1] == fetch.Listing()
    with pytest.raises(FetchError, match="unknown source 'hib'; did you mean 'hiba'"):
        fetch.select("hib", registry)
    with pytest.raises(FetchError, match="'mine' of the registry: key 'licence' is missing"):
        fetch.select("mine", {"mine": fetch.Listing()})
    about, _ = fetch.select("mine", {"mine": fetch.Listing(licence="CC0", attribution="me")})
    assert "CC0" in fetch.terms(about) and "page" not in fetch.terms(about)


# --- the command --------------------------------------------------------------------------------


def run(*arguments: object, answer: str | None = None):
    return CliRunner().invoke(app, ["fetch", *map(str, arguments)], input=answer)


@pytest.fixture
def mirror(server, tmp_path) -> Path:
    file = tmp_path / "mirror.yaml"
    file.write_text(yaml.safe_dump({"PAD-UFES-20": {"files": entries(server)}}))
    return file


@pytest.mark.parametrize("source", ["derm12345", "BCN20000", "pad-ufes-20", "scin", "hiba"])
def test_what_to_get_from_where_is_said_and_nothing_downloaded(source, tmp_path):
    result = run(source, "--to", tmp_path / "set", "--accept-licence")
    assert result.exit_code == 1 and not (tmp_path / "set").exists()
    about = open_access.find(source)
    for words in (about.url, about.licence, str(tmp_path / "set"), *about.layout, "  1. Open"):
        assert words in result.output


def test_the_licence_is_shown_and_asked_for(mirror, server, tmp_path):
    for answer in ("n\n", ""):
        result = run("pad-ufes-20", "--to", tmp_path / "set", "--registry", mirror, answer=answer)
        assert result.exit_code == 1 and "CC BY 4.0" in result.output
        assert "Do you accept" in result.output and not (tmp_path / "set").exists()
    assert not server.asked
    result = run("pad-ufes-20", "--to", tmp_path / "set", "--registry", mirror, answer="y\n")
    assert result.exit_code == 0 and "3 files fetched, 0 were there" in result.output
    result = run("pad-ufes-20", "--to", tmp_path / "set", "--registry", mirror, "--accept-licence")
    assert result.exit_code == 0 and "0 files fetched, 3 were there" in result.output
    assert "Do you accept" not in result.output and "CC BY 4.0" in result.output


def test_a_failed_download_is_a_message(mirror, server, tmp_path):
    server.files["metadata.csv"] = b"other"
    result = run("pad_ufes_20", "--to", tmp_path / "set", "--registry", mirror, "--accept-licence")
    assert result.exit_code == 1 and "derm-rl: metadata.csv: wrong checksum" in result.output
    assert "metadata.csv" not in files_in(tmp_path / "set")
    result = run("scin", "--to", tmp_path / "set", "--registry", mirror)
    assert result.exit_code == 1 and "no files of scin are listed" in result.output


def test_the_default_folder(mirror, runs):
    result = run("pad_ufes_20", "--registry", mirror, "--accept-licence")
    assert result.exit_code == 0
    assert files_in(paths.RUNS / "sources" / "pad_ufes_20") == set(CONTENT)


def test_the_phantom_needs_no_download():
    result = run("phantom")
    assert result.exit_code == 0 and "Nothing to fetch" in result.output
    result = run("phantoms")
    assert result.exit_code == 1 and "did you mean 'phantom'" in result.output
