"""The result of `evaluate` and of `compare`: scores that a notebook shows and that pandas takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lorgnette.metrics.report import MetricReport, format_score
from lorgnette.report.notebook import InlinePage, build_frame, render_result

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Evaluation(MetricReport):
    """The scores of candidates, by name."""

    candidates: tuple[str, ...] = ()

    @classmethod
    def from_report(cls, report: MetricReport, candidates: tuple[str, ...], **values: Any) -> Self:
        return cls(**vars(report), candidates=candidates, **values)

    def to_rows(self) -> list[dict[str, Any]]:
        """A dict for each candidate and metric, with the 95 % interval."""
        return [
            {
                "candidate": candidate,
                "metric": score.name,
                "value": score.value,
                "low": score.interval and score.interval[0],
                "high": score.interval and score.interval[1],
            }
            for candidate, scores in zip(self.candidates, self.scores, strict=False)
            for score in scores
        ]

    def to_pandas(self) -> "pandas.DataFrame":
        """A DataFrame with a row for each candidate and metric. Raises LorgnetteError if pandas is not installed."""
        return build_frame(self.to_rows())

    def _tabulate(self) -> list[dict[str, str]]:
        """A row for each metric, with a column for each candidate."""
        return [
            {
                "metric": name,
                **{
                    candidate: format_score(scores[i])
                    for candidate, scores in zip(self.candidates, self.scores, strict=False)
                },
            }
            for i, name in enumerate(self.metric_names)
        ]

    def _repr_html_(self) -> str:
        return render_result(rows=self._tabulate())


@dataclass(frozen=True)
class Comparison(Evaluation):
    """The scores of all candidates, and the page with every answer. verdict: what they show, in words."""

    path: Path = Path()
    verdict: str = ""

    def to_rows(self) -> list[dict[str, Any]]:
        """As of an evaluation, with the difference from the first candidate, its 95 % interval and its p-value."""
        rows, count = super().to_rows(), len(self.metric_names)
        for i, row in enumerate(rows):
            change = self.differences[i // count, 0][i % count] if i >= count else None
            low, high = (change and change.shown_interval) or (None, None)
            row |= {"difference": change and change.value, "difference_low": low, "difference_high": high}
            row["p_value"] = change and change.p_value
        return rows

    def __fspath__(self) -> str:
        return str(self.path)

    def show_report(self, height: int = 720) -> InlinePage:
        """The page inside the notebook, where a link to a file does not work. height: in pixels."""
        return InlinePage(self.path, height)

    def _repr_html_(self) -> str:
        return render_result(lines=[self.verdict], rows=self._tabulate(), link=self.path)
