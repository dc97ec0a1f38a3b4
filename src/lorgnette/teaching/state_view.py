"""The parts of a page's state that follow from the record of a `teach` run alone: counts, history, score, files."""

from typing import Any

from lorgnette.teaching.current_image import CurrentImage
from lorgnette.teaching.run_record import RunRecord
from lorgnette.teaching.score import Score

_MAX_HISTORY = 8


class StateView:
    """reviewer: who reviews; None: no review."""

    def __init__(self, record: RunRecord, current: CurrentImage, reviewer: str | None) -> None:
        self._record, self._current, self._reviewer = record, current, reviewer
        self._last_score: tuple[Score, dict[str, Any]] | None = None

    def may_undo(self, id: str) -> bool:
        """Whether a decision can be taken back: in a review that of this reviewer, else that of the one who teaches."""
        decision, pick = self._record.state.decisions[id], self._record.state.suggested[id].pick
        if pick == "given" or (pick == "review") != self._current.is_review or self._record.find_number(id) is None:
            return False
        return decision.kind != "reviewed" or decision.reviewer == self._reviewer

    def count(self) -> dict[str, int]:
        """Of images, or in a review of answers: answered, skipped, left, total."""
        kinds = [decision.kind for id, decision in self._record.state.decisions.items() if self.may_undo(id)]
        skipped = kinds.count("skipped")
        if self._current.is_review:
            answered, left = kinds.count("reviewed"), self._current.num_left
            return {"answered": answered, "skipped": skipped, "left": left, "total": answered + skipped + left}
        answered, total = len(self._record.list_answers()), len(self._record.images)
        return {"answered": answered, "skipped": skipped, "left": max(0, total - answered - skipped), "total": total}

    def count_results(self) -> dict[str, int] | None:
        """Of images at the last end of the run: answered, captioned by the model, total; None before there is one."""
        finished = self._record.state.finished
        if finished is None:
            return None
        return {"answered": finished.answers, "suggested": finished.suggestions, "total": len(self._record.images)}

    def list_history(self) -> list[dict[str, Any]]:
        """The last answers, the newest first."""
        state, found = self._record.state, list[dict[str, Any]]()
        for id in reversed(state.decisions):
            if len(found) == _MAX_HISTORY:
                break
            suggested = state.suggested[id]
            answer = state.answers.get(suggested.image)
            if state.decisions[id].kind != "skipped" and self.may_undo(id) and answer is not None:
                entry = {"id": id, "image": self._record.find_number(id), "name": suggested.image, "text": answer}
                found.append({**entry, "suggestion": suggested.text})
        return found

    def view_score(self) -> dict[str, Any]:
        """The score, made once for each."""
        score = self._record.compute_score()
        if self._last_score is None or self._last_score[0] is not score:
            self._last_score = score, score.to_view()
        return self._last_score[1]

    def list_files(self) -> dict[str, str | None]:
        """The run's files; None for those that are not there."""
        run = self._record.run_dir
        files = {"captions": run.captions, "adapter": run.adapter, "report": run.report, "suggestions": run.suggestions}
        return {name: str(path) if path.exists() else None for name, path in files.items()}
