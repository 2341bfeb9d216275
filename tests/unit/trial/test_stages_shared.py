"""A stage store that nodes share, on a disk and on S3: what one node made no other makes again, unless it is torn."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs
import pytest
from moto.server import ThreadedMotoServer

from orchestrator.training.process import Process
from orchestrator.trial import shared
from orchestrator.trial.shared import SharedShelf
from orchestrator.trial.shelf import MANIFEST, Manifest
from orchestrator.trial.stages import StageStore
from tests.unit.trial.test_stages import forbidden, obtained_by_both, writing


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of an S3 server on this machine. Where it is and who may use it is in the environment, as with the real one."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("werkzeug"), "disabled", True)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        here = pyarrow.fs.S3FileSystem(endpoint_override=f"{host}:{port}", scheme="http", allow_bucket_creation=True)
        here.create_dir("bucket")
        yield "s3://bucket"
    server.stop()


@pytest.fixture(params=["disk", "s3"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a shared store is, empty."""
    if request.param == "disk":
        return str(tmp_path / "shared store")
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


def files(where: str) -> list[str]:
    """What lies in a shared store, by path."""
    system, root = pyarrow.fs.FileSystem.from_uri(where)
    found = system.get_file_info(pyarrow.fs.FileSelector(root, recursive=True, allow_not_found=True))
    return sorted(info.path.removeprefix(f"{root}/") for info in found if info.type == pyarrow.fs.FileType.File)


def overwrite(where: str, name: str, content: bytes) -> None:
    system, root = pyarrow.fs.FileSystem.from_uri(where)
    with system.open_output_stream(f"{root}/{name}") as sink:
        sink.write(content)


def made(folder: Path) -> None:
    (folder / "model").write_bytes(b"weights")
    (folder / "below").mkdir()
    (folder / "below" / "meta").write_bytes(b"{}")


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_one_node_made_another_takes(where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, other = StageStore(tmp_path / "one", where), StageStore(tmp_path / "other", where)
    folder, cached = one.obtain("k", Process(), made, stage="teacher")
    assert not cached
    names = [name.split("/", 2)[-1] for name in files(where)]
    assert sorted(names) == ["below/meta", MANIFEST, "model"]
    taken, cached = other.obtain("k", Process(), forbidden)
    assert (taken, cached) == (tmp_path / "other" / "k", True)
    assert content(taken) == content(folder), "its manifest too: what it was, and what it took"
    assert other.seconds("k") == one.seconds("k")
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["k", "k.lock"]
    assert StageStore(tmp_path / "other").obtain("k", Process(), forbidden)[1] is True, "it is here now"
    assert caplog.records == []


@pytest.mark.parametrize("torn", ["no manifest", "half a manifest", "cut short", "flipped", "missing"])
def test_what_is_torn_is_deleted_and_made_again(
    torn: str, tmp_path: Path, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    where = f"{bucket}/torn-{torn.replace(' ', '-')}"
    StageStore(tmp_path / "one", where).obtain("k", Process(), made)
    (model,) = [name for name in files(where) if name.endswith("model")]
    system, root = pyarrow.fs.FileSystem.from_uri(where)
    match torn:
        case "no manifest":
            system.delete_file(f"{root}/k/{MANIFEST}")
        case "half a manifest":
            overwrite(where, f"k/{MANIFEST}", b'{"stage": "tea')
        case "cut short":
            overwrite(where, model, b"weig")
        case "flipped":
            overwrite(where, model, b"weighus")
        case "missing":
            system.delete_file(f"{root}/{model}")
    other = StageStore(tmp_path / "other", where)
    with caplog.at_level(logging.WARNING):
        folder, cached = other.obtain("k", Process(), writing("again"))
    assert not cached
    assert sorted(content(folder)) == ["made.txt", MANIFEST]
    assert len(caplog.records) == (torn != "no manifest")
    assert all("is not whole and was deleted" in record.message for record in caplog.records)
    assert (model in files(where)) == (torn == "no manifest"), "what was deleted is gone"
    third, cached = StageStore(tmp_path / "third", where).obtain("k", Process(), forbidden)
    assert cached
    assert content(third) == content(folder)


def test_a_manifest_that_leads_out_of_its_folder_is_not_followed(tmp_path: Path) -> None:
    where, outside = tmp_path / "shared", tmp_path / "one" / "outside"
    manifest = Manifest("teacher", 1.0, 1.0, {"../../outside": (4, "0" * 64)})
    (where / "k").mkdir(parents=True)
    (where / "k" / MANIFEST).write_bytes(manifest.to_bytes())
    (where / "k" / "outside").write_bytes(b"evil")
    assert StageStore(tmp_path / "one", str(where)).obtain("k", Process(), made)[1] is False
    assert not outside.exists()


def test_two_that_bring_up_at_once_leave_a_whole_entry(tmp_path: Path) -> None:
    """Their files differ where they hold times, say; each has its names, and the manifest that came last names its own."""
    where = tmp_path / "shared"
    folders = []
    for text in ("one", "other"):
        folder, _ = StageStore(tmp_path / text).obtain("k", Process(), writing(text))
        (where / "k" / MANIFEST).unlink(missing_ok=True)  # neither saw the other's
        SharedShelf(str(where)).offer("k", folder)
        folders.append(folder)
    assert len([name for name in files(str(where)) if name.endswith("made.txt")]) == 2
    taken, cached = StageStore(tmp_path / "third", str(where)).obtain("k", Process(), forbidden)
    assert cached
    assert content(taken) == content(folders[1])


def test_a_store_that_does_not_answer_is_left_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A trial has no need of it. Here it is a folder below a file, which cannot be."""
    (tmp_path / "file").write_text("in the way")
    store = StageStore(tmp_path / "one", str(tmp_path / "file" / "shared"))
    with caplog.at_level(logging.WARNING):
        assert store.obtain("a", Process(), made)[1] is False
        assert store.obtain("b", Process(), made)[1] is False
    (record,) = caplog.records
    assert "is left alone for 60 s, as" in record.message
    (tmp_path / "file").unlink()
    later = shared.time.monotonic() + 61
    monkeypatch.setattr(shared.time, "monotonic", lambda: later)
    assert store.obtain("c", Process(), made)[1] is False
    assert (tmp_path / "file" / "shared" / "c" / MANIFEST).exists(), "it is asked again"


@pytest.mark.parametrize("uri", ["s5://bucket/x", "hdfs://nowhere:1/x"])
def test_a_file_system_that_cannot_be_had_costs_a_log_line(uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert StageStore(tmp_path, uri).obtain("k", Process(), made)[1] is False
    assert len(caplog.records) == 1


def test_the_other_ranks_hear_what_became_of_it(tmp_path: Path) -> None:
    """Neither while an entry comes down nor while one goes up does a rank wait in a collective."""
    where = str(tmp_path / "shared")

    def make(folder: Path) -> None:
        if folder.exists():  # the folder is rank 0's to fill
            writing("x")(folder)

    got, heard = obtained_by_both(StageStore(tmp_path / "one", where), make, alone=False)
    assert got == [(tmp_path / "one" / "k", False)] * 2
    assert [word for word in heard if word != "busy"] == ["mine", "written"]
    got, heard = obtained_by_both(StageStore(tmp_path / "other", where), forbidden)
    assert got == [(tmp_path / "other" / "k", True)] * 2
    assert [word for word in heard if word != "busy"] == ["hit"]
