import re
from pathlib import Path

import jinja2
import pytest

from lorgnette.data import DataReport
from lorgnette.report.check_report import CheckReport, SplitSummary
from lorgnette.report.html import templates
from lorgnette.report.html.check_page import write_check_page
from lorgnette.report.html.templates import compile_template, render, write_page


def test_values_are_escaped_and_missing_ones_are_errors(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", "base.html.j2", title="<b>", summary="1 → 2", data={"text": "</script>"})
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;" in html
    assert html.count("</script>") == 2
    assert "1\N{NO-BREAK SPACE}→" in html
    with pytest.raises(jinja2.UndefinedError):
        write_page(tmp_path / "page.html", "base.html.j2", summary="", data={})


@pytest.mark.parametrize("is_prepared", [True, False])
def test_a_prepared_page_has_nothing_left_to_compile(is_prepared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "_COMPILED", templates._CompiledTemplates())
    if is_prepared:
        compile_template("page.html.j2")
    compiled = []
    compile_source = jinja2.Environment.compile

    def record(self: jinja2.Environment, source: str, name: str, *arguments: object) -> object:
        compiled.append(name)
        return compile_source(self, source, name, *arguments)  # type: ignore[call-overload]

    monkeypatch.setattr(jinja2.Environment, "compile", record)
    with pytest.raises(jinja2.UndefinedError):
        render("page.html.j2", folders=[Path("/data")])
    for name in ("macros.html.j2", "label_table.html.j2", "base.css", "theme.js", "page.css"):
        templates._build_environment([Path("/data")], ()).get_template(name)
    assert ("page.html.j2" in compiled, "macros.html.j2" in compiled) == (not is_prepared, not is_prepared)
    assert bool(compiled) is not is_prepared


def write_command(command: str, folder: Path) -> str:
    """The command as a page shows it."""
    rows = DataReport(9, 9, (), 3, 0, None, None, None)
    report = CheckReport(
        "x", rows, (), SplitSummary(7, 2, 2), {}, None, 0, next_steps=[("", command)], folders=[folder]
    )  # fmt: skip
    write_check_page(folder / "check.html", report)
    html = (folder / "check.html").read_text(encoding="utf-8")
    return re.sub("</?span>", "", html.partition("<code>")[2].partition("</code>")[0])


def test_pages_have_no_path_of_this_machine(tmp_path: Path) -> None:
    """Only whole folders at the start of a path are left out; a relative folder is part of no path."""
    folders = [tmp_path, Path("/"), Path("images")]
    paths = [f"{tmp_path}/images/a.jpg", f"/mnt{tmp_path}/b.jpg", f"{tmp_path}s/c.jpg", str(Path.home() / "d.jpg")]
    write_page(
        tmp_path / "page.html", "base.html.j2", folders=folders, title="a", summary=" ".join(f"({p})" for p in paths),
        data={},
    )  # fmt: skip
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert write_command(f"check {tmp_path}/a.csv <b>", tmp_path) == f"check {tmp_path}/a.csv &lt;b&gt;"
    assert write_command(f"check '{Path.home()}/my data/a.csv'", tmp_path) == "check ~/&#39;my data/a.csv&#39;"
    assert f"(images/a.jpg) (/mnt{tmp_path}/b.jpg) ({tmp_path}s/c.jpg) (~/d.jpg)" in html


def test_pages_of_a_process_share_their_code_and_no_folder(tmp_path: Path) -> None:
    for folder in (tmp_path / "one", tmp_path / "two"):
        values = {"title": "t", "summary": f"({folder}/x.jpg)", "data": {}}
        assert "(x.jpg)" in render("base.html.j2", folders=[folder], **values)
        assert f"({folder}/x.jpg)" in render("base.html.j2", **values)
