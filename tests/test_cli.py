"""The command `pyext`, as a user runs it."""

import json
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
import typer

from pyext import environment, methods, requirements
from pyext.cli import app, bench, main
from pyext.methods import Entry, Method
from pyext.report import Claim, Report
from pyext.show import show_claims, show_rows


def pyext(*arguments, **options):
    command = [sys.executable, "-m", "pyext.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, **options)


def call(monkeypatch, capsys, *arguments):
    """Run the command line in this process: its exit code, what it printed."""
    monkeypatch.setattr(sys, "argv", ["pyext", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    return end.value.code or 0, printed.out, printed.err


@pytest.fixture
def method(monkeypatch):
    """A method `tiny` whose demo is `tiny_demo`."""
    tiny = Method("tiny", "Does little.", "P 2026", (), demo=f"{__name__}:tiny_demo")
    monkeypatch.setattr(methods, "names", lambda: ["tiny"])
    monkeypatch.setattr(methods, "entries_named", lambda name: [Entry("tiny", "tiny-dist", tiny)])
    monkeypatch.setattr(methods, "get", lambda name: tiny)
    return tiny


measured = 1.0


def tiny_demo(output: Path) -> Report:
    (output / "picture.png").write_bytes(b"")
    claim = Claim("it is small", measured, "<=", 2)
    return Report("tiny", [{"x": 1}], [claim], {"a picture": output / "picture.png"})


def test_help_loads_neither_torch_nor_a_plugin():
    code = (
        "import sys; sys.argv[1:] = ['--help']\nfrom pyext.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([x for x in ('torch', 'pyext_plugins') if x in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("[]\n"), done.stderr
    for command in ("list", "info", "doctor", "demo", "bench", "new-plugin"):
        assert command in done.stdout


@pytest.mark.parametrize("module", ["typer", "rich", "packaging"])
def test_a_missing_extra_is_one_line(tmp_path, module):
    (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError('gone', name={module!r})")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv[1:] = ['list']\n"
        "from pyext.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        f"pyext: the command line needs {module}: pip install 'pyext-kernels[cli]'\n"
    )


@pytest.mark.parametrize("command", ["doctor", "bench"])
def test_a_compiled_part_that_does_not_load_is_one_line(command):
    code = (
        f"import sys; sys.modules['pyext._C'] = None; sys.argv[1:] = [{command!r}]\n"
        "from pyext.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("pyext: the compiled part does not load (")
    assert "pip install" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "--bogus"], "No such option: --bogus (see pyext list --help)"),
        (["demo"], "Missing argument 'NAME'. (see pyext demo --help)"),
        (["inf"], "no command or method 'inf'. Did you mean 'info'? There are: list, info, "),
        (["tinny"], "no command or method 'tinny'. Did you mean 'tiny'? There are: list, info, "),
    ],
)
def test_a_slip_is_one_line(monkeypatch, capsys, method, arguments, message):
    code, out, err = call(monkeypatch, capsys, *arguments)
    assert code == 2 and out == ""
    assert err.startswith(f"pyext: {message}") and err.count("\n") == 1


def test_no_arguments_show_the_help(monkeypatch, capsys):
    code, out, err = call(monkeypatch, capsys)
    assert code == 2 and err == "" and "new-plugin" in out


def test_a_method_does_not_take_the_place_of_a_command(monkeypatch, capsys, method):
    monkeypatch.setattr(methods, "names", lambda: ["doctor"])
    code, out, _ = call(monkeypatch, capsys, "doctor")
    assert code == 0 and "instruction set" in out


@pytest.fixture
def offer(monkeypatch):
    """Offers a command `extra` of plugins that is the `typer.Typer` of this name here."""

    def add(*values):
        points = EntryPoints(EntryPoint("extra", value, app.GROUP) for value in values)
        monkeypatch.setattr(app, "entry_points", points.select)

    return add


extra = typer.Typer()


@extra.command()
def greet(name: str) -> None:
    print(f"Hello {name}")


def test_a_plugin_adds_a_command_that_is_no_method(monkeypatch, capsys, offer):
    offer(f"{__name__}:extra")
    assert call(monkeypatch, capsys, "extra", "greet", "Ada") == (0, "Hello Ada\n", "")
    code, out, _ = call(monkeypatch, capsys, "--help")
    assert code == 0 and "Commands that plugins add: extra." in out
    code, _, err = call(monkeypatch, capsys, "extrq")
    assert code == 2 and "Did you mean 'extra'? There are: list, " in err


def test_a_plugin_that_adds_a_command_and_does_not_load_is_one_line(monkeypatch, capsys, offer):
    offer("not_there:extra")
    code, _, err = call(monkeypatch, capsys, "extra")
    assert code == 2
    assert err == "pyext: not_there:extra does not load: No module named 'not_there'\n"
    assert call(monkeypatch, capsys, "list")[0] == 0


def test_none_of_two_commands_of_one_name_is_chosen(monkeypatch, capsys, offer):
    offer("here:extra", "there:extra")
    code, _, err = call(monkeypatch, capsys, "extra")
    assert code == 2
    assert err == "pyext: several plugins offer the command 'extra': here:extra, there:extra\n"


def test_list_names_the_installed_methods():
    done = pyext("list", env={"COLUMNS": "250"})
    assert done.returncode == 0, done.stderr
    assert "splat-fit" in done.stdout and "│ ready" in done.stdout


def test_info_of_an_unknown_method_is_one_line():
    done = pyext("info", "splat-fot")
    assert done.returncode == 2
    assert done.stderr == (
        "pyext: no method 'splat-fot'. Did you mean 'splat-fit'? "
        f"Installed methods: {', '.join(methods.names())}\n"
    )


def test_list_says_what_mends_a_method(monkeypatch, capsys, method):
    entry = Entry("tiny", "tiny-dist", method, "missing: x>=3", "pip install 'tiny-dist[all]'")
    monkeypatch.setattr(methods, "entries", lambda: [entry])
    code, out, _ = call(monkeypatch, capsys, "list")
    assert code == 0 and "not ready" in out
    # Outside the table, which would break it into pieces.
    assert out.endswith(
        "tiny (tiny-dist): missing: x>=3\n  to mend it: pip install 'tiny-dist[all]'\n"
    )


def test_doctor_tells_the_instruction_set_and_why_there_is_no_cuda(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = call(monkeypatch, capsys, "doctor")
    assert code == 0
    for words in ("instruction set", "threads running", "build: compiler", environment.cuda()):
        assert words in out


def test_demo_saves_its_report(monkeypatch, capsys, method, tmp_path):
    code, out, _ = call(monkeypatch, capsys, "demo", "tiny", "-o", str(tmp_path / "new"))
    assert code == 0 and "held" in out and "picture.png" in out
    report = json.loads((tmp_path / "new" / "report.json").read_text())
    assert report["claims"] == [
        {"text": "it is small", "measured": 1.0, "relation": "<=", "wanted": 2, "held": True}
    ]
    assert report["pictures"] == {"a picture": "picture.png"}


def test_a_claim_that_fails_is_shown_and_is_the_exit_code(monkeypatch, capsys, method, tmp_path):
    monkeypatch.setattr(sys.modules[__name__], "measured", 3.0)
    code, out, _ = call(monkeypatch, capsys, "demo", "tiny", "-o", str(tmp_path))
    assert code == 1 and "FAILED" in out
    assert json.loads((tmp_path / "report.json").read_text())["claims"][0]["held"] is False


def test_an_output_that_is_a_file_is_refused(monkeypatch, capsys, method, tmp_path):
    (tmp_path / "taken").write_text("")
    code, _, err = call(monkeypatch, capsys, "demo", "tiny", "-o", str(tmp_path / "taken"))
    assert code == 2
    assert (
        err
        == f"pyext: --output: expected a folder to write to, got {tmp_path}/taken: File exists\n"
    )


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder root cannot write to")
def test_an_output_nobody_can_write_to_is_refused_before_the_work(monkeypatch, capsys, method):
    monkeypatch.setattr(sys.modules[__name__], "tiny_demo", lambda output: pytest.fail("it ran"))
    code, _, err = call(monkeypatch, capsys, "demo", "tiny", "-o", "/proc")
    assert code == 2
    assert (
        err.startswith("pyext: --output: expected a folder to write to, got /proc: ")
        and err.count("\n") == 1
    )


def test_a_method_without_commands_says_what_it_has(monkeypatch, capsys, method):
    code, _, err = call(monkeypatch, capsys, "tiny")
    assert code == 2
    assert err == "pyext: method 'tiny' has no commands of its own; try: pyext demo tiny\n"


@pytest.mark.parametrize("text", ["", "0", "1,1", "two", "1;2"])
def test_bench_refuses_odd_thread_counts(monkeypatch, capsys, text):
    code, _, err = call(monkeypatch, capsys, "bench", "--threads", text)
    assert code == 2
    assert err == f"pyext: --threads: expected different counts like 1,2, got {text!r}\n"


def test_bench_of_an_unknown_family_lists_the_known_ones(monkeypatch, capsys):
    code, _, err = call(monkeypatch, capsys, "bench", "splut")
    assert code == 2
    from benchmarks.harness import families

    known = ", ".join(families())
    assert "splat" in known
    assert err == f"pyext: no benchmarks for family 'splut'; there are: {known}\n"


def test_bench_without_its_extra_says_what_is_missing(monkeypatch, capsys):
    def without_matplotlib(name):
        if name == "matplotlib":
            raise requirements.PackageNotFoundError(name)
        return installed(name)

    installed = requirements.distribution
    monkeypatch.setattr(requirements, "distribution", without_matplotlib)
    code, _, err = call(monkeypatch, capsys, "bench", "splut")
    assert code == 2
    assert err == "pyext: missing: matplotlib>=3.8: pip install 'pyext-kernels[bench]'\n"


def test_bench_without_a_checkout_says_where_to_run(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "pyext" / "cli" / "bench.py"))
    code, _, err = call(monkeypatch, capsys, "bench")
    assert code == 2 and err.startswith("pyext: the benchmarks are part of the source checkout")


def test_bench_is_given_what_was_asked_for(monkeypatch, capsys, tmp_path):
    import benchmarks.report

    asked = []

    def fail_the_claims(*arguments):
        asked.append(arguments)
        return False

    monkeypatch.setattr(benchmarks.report, "main_run", fail_the_claims)
    options = ("--threads", "1,2", "--seconds", "3", "-o", str(tmp_path / "new"))
    code, _, _ = call(monkeypatch, capsys, "bench", "splat", *options)
    assert code == 1 and asked == [("splat", [1, 2], 3.0, tmp_path / "new")]


def test_tables_keep_brackets(capsys):
    show_rows([{"[green]": "[red]"}], title="[bold]")
    show_claims([Claim("mean of [red]", 1.0, ">=", 0)])
    out = capsys.readouterr().out
    assert "[green]" in out and "[bold]" in out and out.count("[red]") == 2
