from pathlib import Path

import jinja2
import pytest

from lorgnette.report.html.templates import write_page


def test_values_are_escaped_and_missing_ones_are_errors(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", "base.html.j2", title="<b>", summary="1 → 2", data={"text": "</script>"})
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;" in html
    assert html.count("</script>") == 2
    assert "1\N{NO-BREAK SPACE}→" in html
    with pytest.raises(jinja2.UndefinedError):
        write_page(tmp_path / "page.html", "base.html.j2", summary="", data={})


def test_pages_have_no_path_of_this_machine(tmp_path: Path) -> None:
    """Only whole folders at the start of a path are left out; a relative folder is part of no path."""
    folders = [tmp_path, Path("/"), Path("images")]
    paths = [f"{tmp_path}/images/a.jpg", f"/mnt{tmp_path}/b.jpg", f"{tmp_path}s/c.jpg", str(Path.home() / "d.jpg")]
    write_page(
        tmp_path / "page.html", "base.html.j2", folders=folders, title="a", summary=" ".join(f"({p})" for p in paths),
        data={},
    )  # fmt: skip
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert f"(images/a.jpg) (/mnt{tmp_path}/b.jpg) ({tmp_path}s/c.jpg) (~/d.jpg)" in html
