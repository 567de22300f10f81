"""The registry: what is found, what is wrong with it, and what mends it."""

import subprocess
import sys
from importlib.metadata import EntryPoint, PathDistribution

import pytest

from pyext import methods
from pyext.methods import Method, MethodError

PLUGIN = """
from pyext.methods import Method
METHOD = Method(name={name!r}, summary="Does.", paper="P 2026", ops={ops!r}, extra={extra!r})
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Makes distributions with one entry point each, the only ones the registry finds."""
    points = []
    monkeypatch.syspath_prepend(str(tmp_path))

    def add(name, source, distribution, requires=(), extras=("more", "deep")):
        module = f"plugin_{len(points)}"
        monkeypatch.delitem(sys.modules, module, raising=False)  # of an earlier test
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir(exist_ok=True)
        lines = [f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"]
        lines += [f"Requires-Dist: {line}\n" for line in requires]
        lines += [f"Provides-Extra: {extra}\n" for extra in extras]
        (info / "METADATA").write_text("".join(lines))
        point = EntryPoint(name, f"{module}:METHOD", methods.GROUP)
        vars(point)["dist"] = PathDistribution(info)
        points.append(point)

    def find(group, name=None):
        assert group == methods.GROUP
        return [point for point in points if name in (None, point.name)]

    monkeypatch.setattr(methods, "entry_points", find)
    yield add
    # The next test's modules have the same names.
    for number in range(len(points)):
        sys.modules.pop(f"plugin_{number}", None)


def plugin(name="one", ops=("splat",), extra=None):
    return PLUGIN.format(name=name, ops=ops, extra=extra)


def test_a_sound_plugin_is_ready(install):
    install("one", plugin(), "dist-one")
    (entry,) = methods.entries()
    assert entry.ready and entry.method.summary == "Does." and entry.distribution == "dist-one"
    assert methods.get("one") is entry.method


def test_a_broken_plugin_does_not_disturb_the_others(install):
    install("broken", "raise RuntimeError('no luck')", "dist-broken")
    install("ending", "import sys; sys.exit('the end')", "dist-ending")
    install("missing", "import not_there", "dist-missing")
    install("unreadable", plugin("unreadable"), "dist-unreadable", ("no == requirement!",))
    install("verbose", "raise ValueError('two\\nlines')", "dist-verbose")
    install("sound", plugin("sound"), "dist-sound")
    found = {entry.name: entry for entry in methods.entries()}
    assert list(found) == ["broken", "ending", "missing", "sound", "unreadable", "verbose"]
    assert [name for name in found if found[name].ready] == ["sound"]
    assert found["broken"].problem == "RuntimeError: no luck"
    assert found["missing"].problem == "ModuleNotFoundError: No module named 'not_there'"
    assert found["ending"].problem == "SystemExit: the end"
    assert found["verbose"].problem == "ValueError: two lines"
    assert found["unreadable"].problem.startswith("its requirements cannot be read: Expected")
    assert found["broken"].mend == "pip install --upgrade dist-broken"
    with pytest.raises(MethodError, match="'broken' cannot be used: RuntimeError: no luck. To men"):
        methods.get("broken")


def test_two_of_one_name_are_both_reported_and_neither_is_chosen(install):
    install("one", plugin(), "dist-a")
    install("one", plugin(), "dist-b")
    first, second = methods.entries()
    assert (first.distribution, first.problem) == ("dist-a", "dist-b also offers it")
    assert (second.distribution, second.problem) == ("dist-b", "dist-a also offers it")
    with pytest.raises(MethodError, match="dist-b also offers it"):
        methods.get("one")


def test_a_name_that_differs_from_the_entry_point_is_reported(install):
    install("one", plugin("other"), "dist-one")
    (entry,) = methods.entries()
    assert entry.problem == "the method calls itself 'other', its entry point 'one'"


def test_an_object_that_is_no_method_is_reported(install):
    install("one", "METHOD = 7", "dist-one")
    (entry,) = methods.entries()
    assert entry.problem == "plugin_0:METHOD is a int, not a pyext.methods.Method"


def test_what_an_extra_lacks_is_read_from_the_metadata(install):
    requires = (
        "torch>=2",
        'no-such-package>=3; extra == "more"',
        'torch>=99; extra == "more"',
        'other-package; extra == "unused"',
    )
    install("one", plugin(extra="more"), "dist-one", requires)
    (entry,) = methods.entries()
    assert entry.problem.startswith("missing: no-such-package>=3, torch>=99 (there is 2")
    assert entry.mend == "pip install 'dist-one[more]'"
    assert not entry.ready and entry.method is not None


def test_without_an_extra_the_requirements_of_the_distribution_count(install):
    requires = ("no-such-package", 'another-one; extra == "more"')
    install("one", plugin(), "dist-one", requires)
    (entry,) = methods.entries()
    assert (entry.problem, entry.mend) == ("missing: no-such-package", "pip install 'dist-one'")


def test_an_extra_the_distribution_does_not_declare_is_named(install):
    install("one", plugin(extra="mroe"), "dist-one")
    (entry,) = methods.entries()
    assert entry.problem == "dist-one declares no extra 'mroe'"


def test_an_extra_may_be_spelt_another_way(install):
    install("one", plugin(extra="a-b"), "dist-one", ('no-such; extra == "a-b"',), ("A_b",))
    (entry,) = methods.entries()
    assert entry.problem == "missing: no-such"


def test_only_the_plugin_asked_for_is_imported(install):
    install("one", plugin(), "dist-one")
    install("two", "raise AssertionError('imported')", "dist-two")
    assert methods.get("one").name == "one"
    assert "plugin_0" in sys.modules and "plugin_1" not in sys.modules


def test_what_a_reference_names_is_loaded_or_named():
    assert methods.resolve("pyext.methods:Method") is Method
    with pytest.raises(MethodError, match="not_there:x does not load: No module named 'not_there'"):
        methods.resolve("not_there:x")
    with pytest.raises(MethodError, match="pyext.methods:Nothing does not load: module .* has no"):
        methods.resolve("pyext.methods:Nothing")


def test_an_extra_of_a_requirement_is_followed(install):
    install("inner", plugin("inner"), "dist-inner", ('no-such-package; extra == "deep"',))
    install("one", plugin(extra="more"), "dist-one", ('dist-inner[deep]; extra == "more"',))
    found = {entry.name: entry for entry in methods.entries()}
    assert found["one"].problem == "missing: no-such-package"


def test_an_op_family_this_version_lacks_is_named(install):
    install("one", plugin(ops=("splat", "warp")), "dist-one")
    (entry,) = methods.entries()
    assert entry.problem == "this pyext has no ops warp"
    assert entry.mend == "pip install --upgrade pyext-kernels"


def test_an_unknown_name_lists_the_known_ones(install):
    install("splat-fit", plugin("splat-fit"), "dist-one")
    with pytest.raises(MethodError) as caught:
        methods.get("splatfit")
    assert str(caught.value) == (
        "no method 'splatfit'. Did you mean 'splat-fit'? Installed methods: splat-fit"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Bad Name"}, "name: expected lower-case words joined by hyphens, got 'Bad Name'"),
        ({"summary": "a\nb"}, "summary: expected one line"),
        ({"ops": "splat"}, "ops: expected a tuple of names, got 'splat'"),
        ({"demo": "no colon"}, "demo: expected 'module:object', got 'no colon'"),
        ({"commands": "a:b:c"}, "commands: expected 'module:object', got 'a:b:c'"),
    ],
)
def test_a_method_checks_itself(changes, message):
    with pytest.raises(ValueError, match=message):
        Method(**{"name": "one", "summary": "Does.", "paper": "P", "ops": (), **changes})


def test_listing_imports_neither_torch_nor_a_plugin():
    code = (
        "import sys, pyext.methods as m; m.names(); m.op_families();"
        "print([x for x in ('torch', 'typer', 'rich', 'pyext_plugins') if x in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_op_families_are_the_modules_of_ops():
    import pyext.ops

    assert methods.op_families() == sorted(pyext.ops.__all__)
