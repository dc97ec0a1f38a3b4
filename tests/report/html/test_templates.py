import jinja2
import pytest

from lorgnette.report.html.templates import render_template


def test_values_are_escaped_and_missing_ones_are_errors() -> None:
    html = render_template("base.html.j2", title="<b>", summary="1 → 2", data={"text": "</script>"})
    assert "&lt;b&gt;" in html
    assert html.count("</script>") == 2
    assert "1\N{NO-BREAK SPACE}→" in html
    with pytest.raises(jinja2.UndefinedError):
        render_template("base.html.j2", summary="", data={})
