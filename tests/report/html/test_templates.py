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
