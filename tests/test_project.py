"""The project's own files: the version, the extras, and the documents that a project has."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import halpiee
from halpiee.errors import EXTRAS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORTED_AS = {
    "scikit-learn": "sklearn",
    "pillow": "PIL",
    "cuda-python": "cuda",
    "tensorrt_rtx_cu13": "tensorrt_rtx",
}


def test_the_version_is_written_in_one_place() -> None:
    assert "version" not in PROJECT
    assert PROJECT["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", halpiee.__version__)


def test_the_changelog_names_the_version() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in changes
    assert f"## [{halpiee.__version__}]" in changes
    assert f"version: {halpiee.__version__}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_installs_the_modules_that_the_table_says(extra: str) -> None:
    names = [re.split(r"[><=\[]", line)[0] for line in PROJECT["optional-dependencies"][extra]]
    assert {IMPORTED_AS.get(name, name) for name in names if name != "halpiee"} == set(EXTRAS[extra])


def test_the_development_extra_installs_every_runtime_extra() -> None:
    extras = PROJECT["optional-dependencies"]
    assert extras["all"] == ["halpiee[train,report,cpsat]"]
    assert "halpiee[all,tasks,datasets]" in extras["dev"]


WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
import importlib.metadata, importlib.util
find, version = importlib.util.find_spec, importlib.metadata.version
importlib.util.find_spec = lambda name: None if name in {absent!r} else find(name)
def known(name):
    if name in {absent!r}:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = known
from halpiee.cli.app import main
main({arguments!r})
"""


def without(absent: set[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the program where some packages are not installed."""
    code = WITHOUT.format(absent=absent, arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_a_verb_that_lacks_torch_says_which_extra_to_install_and_exits_3() -> None:
    done = without({"torch"}, "profile", "resnet20", "--size", "32", "--dry-run")
    sentence = (
        "halpiee: this needs the package torch, which is not installed; type pip install 'halpiee[train]'\n"
    )
    assert (done.returncode, done.stderr) == (3, sentence)


def test_a_profile_is_read_with_the_base_dependencies_alone() -> None:
    profile = next((ROOT / "profiles").glob("*/resnet20-32-b1.jsonl"))
    optional = {module for modules in EXTRAS.values() for module in modules}
    done = without(optional, "inspect", str(profile))
    assert (done.returncode, done.stderr) == (0, "")
    assert "onnxruntime" in done.stdout


def test_the_doctor_names_the_extra_of_each_package_that_is_not_there() -> None:
    optional = {module for modules in EXTRAS.values() for module in modules}
    done = without(optional, "doctor", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    fixes = {finding["what"]: finding["fix"] for finding in json.loads(done.stdout)["findings"]}
    assert fixes["torch"] == "pip install 'halpiee[train]'"
    assert fixes["onnxruntime"] == "pip install 'halpiee[profile]'"
    assert fixes["ortools"] == "pip install 'halpiee[cpsat]'"
