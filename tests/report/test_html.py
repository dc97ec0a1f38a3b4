from pathlib import Path

from PIL import Image

from lorgnette.report.html import Shown, data_uri, write_html


def test_a_picture_or_what_stands_in_its_place(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40), "teal").save(tmp_path / "a.png")
    shown, gone = Shown.of(tmp_path / "a.png", 5000), Shown.of(tmp_path / "gone.png", 5000)
    assert shown.source.startswith("data:image/jpeg;base64,")
    assert (gone.name, gone.source, gone.problem) == ("gone.png", "", "the file is gone")


def test_bytes_as_an_address() -> None:
    assert data_uri(b"abc", "png") == "data:image/png;base64,YWJj"


def test_what_is_shown_is_escaped(tmp_path: Path) -> None:
    write_html(tmp_path / "x.html", "preview.html.j2", title="<b>", lead="1 < 2", data=["</script><b>"], rows=[])
    html = (tmp_path / "x.html").read_text()
    assert "<b>" not in html
    assert "<title>&lt;b&gt;</title>" in html
    assert "1 &lt; 2" in html
    assert "Content-Security-Policy" in html
