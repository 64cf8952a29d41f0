"""The documents hold: their code runs as it stands, and the reference leaves no public name out."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rfkernels as rfk

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^```(?P<info>[^`\n]*)\n(?P<body>.*?)^```[ ]*$", re.DOTALL | re.MULTILINE)
JAX = re.compile(r"^\s*(import|from) jax\b", re.MULTILINE)


def fenced(text: str) -> list[tuple[int, list[str], str]]:
    """Line number of the first line, words after the fence, and body of every fenced block."""
    return [(text.count("\n", 0, m.start("body")), m["info"].split(), m["body"]) for m in FENCE.finditer(text)]


def runnable(text: str, has_jax: bool) -> str:
    """The Python blocks that are meant to run, each on the lines that it has in the document."""
    lines = [""] * (text.count("\n") + 1)
    for start, info, body in fenced(text):
        if info == ["python"] and (has_jax or not JAX.search(body)):
            block = body.splitlines()
            lines[start : start + len(block)] = block
    return "\n".join(lines)


def with_python() -> list[str]:
    return [name for name in DOCUMENTS if "\n```python" in (ROOT / name).read_text(encoding="utf-8")]


def test_fenced_blocks_keep_their_lines() -> None:
    text = "# t\n```python\nx = 1\n```\n```python no-run\ny\n```\n```python\nimport jax\nz = 2\n```\n"
    assert fenced(text) == [
        (2, ["python"], "x = 1\n"),
        (5, ["python", "no-run"], "y\n"),
        (8, ["python"], "import jax\nz = 2\n"),
    ]
    assert runnable(text, has_jax=True).split("\n")[2:] == ["x = 1", "", "", "", "", "", "import jax", "z = 2", "", ""]
    assert "jax" not in runnable(text, has_jax=False)


def test_the_main_documents_have_code() -> None:
    assert {"README.md", "docs/quickstart.md"} <= set(with_python())


@pytest.mark.parametrize("name", with_python())
def test_python_blocks_compile(name: str) -> None:
    for line, info, body in fenced((ROOT / name).read_text(encoding="utf-8")):
        if info[:1] == ["python"]:
            assert info[1:] in ([], ["no-run"]), f"{name}:{line}: unknown words after the fence: {info}"
            compile("\n" * line + body, name, "exec")


@pytest.mark.parametrize("name", with_python())
def test_python_blocks_run(name: str, tmp_path: Path) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    if name == "docs/jax.md":
        pytest.importorskip("flax")
    has_jax = importlib.util.find_spec("jax") is not None
    script = tmp_path / f"document_{Path(name).stem}.py"  # a script called jax.py would be what `import jax` finds
    script.write_text(runnable(text, has_jax), encoding="utf-8")
    library = str(Path(rfk.__file__).parents[1])
    path = os.pathsep.join(filter(None, [library, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{name} (line numbers are its own):\n{done.stdout}\n{done.stderr}"
    if not has_jax and runnable(text, has_jax=True) != runnable(text, has_jax=False):
        pytest.skip(f"jax is not installed: the blocks of {name} that import it were left out, the others ran")


def test_readme_holds_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    marked = dict(re.findall(r"^<!-- ci:(\w+) -->\n```bash\n(.*?)\n```$", text, re.DOTALL | re.MULTILINE))
    assert marked == {"demo": 'pip install ".[cli]" && rfkernels demo', "test": 'pip install ".[test]" && pytest'}


def test_reference_names_everything_public() -> None:
    reference = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\.\. auto\w+:: rfkernels\.(\w+)", reference, re.MULTILINE))
    public = {name for name in rfk.__all__ if not name.startswith("__")}
    assert public <= documented, f"docs/api.md lacks {sorted(public - documented)}"


def test_errors_of_groups_in_the_readme_are_those_of_today() -> None:
    """Groups draw nothing, so that their errors on the shipped heads are the same everywhere."""
    with np.load(ROOT / "rfkernels" / "data" / "minilm_heads.npz") as data:
        q, k, v = (data[name].astype(np.float32) for name in "qkv")
    for label, window in (("groups, 128", None), ("**groups, 128, window 64**", 64)):
        found = []
        for causal in (False, True):
            exact = rfk.exact_attention(q, k, v, causal=causal)
            apart = rfk.attention(q, k, v, groups=128, window=window, causal=causal) - exact
            error = np.linalg.norm(apart, axis=(-2, -1)) / np.linalg.norm(exact, axis=(-2, -1))
            found.append(f"{np.median(error):.2f}, {error.max():.2f}")
        bold = "**" if label.startswith("**") else ""
        row = f"| {label} | {' | '.join(bold + x + bold for x in found)} |"
        assert row in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
