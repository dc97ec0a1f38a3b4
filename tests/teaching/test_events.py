"""Every event survives its line of JSON; a line that is none names what is wrong with it."""

import json

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.teaching import events
from lorgnette.teaching.events import Answered, Event, Suggested, parse_event

ODD_TEXT = 'a "red" car,\n\tл´été 🎈\u2028\x85猫'
EVENTS: list[Event] = [
    events.Opened(t=1.5, folder="photos", model="demo", prompt="?", seed=3, num_images=4, labels=["a"], version="1"),
    Suggested(t=2, id="s1", image="a/é.png", sha="9f", round=None, pick="spread", text=None),
    Suggested(
        t=2, id="s2", image="b", sha="", round=3, pick="hardest", text=ODD_TEXT, surety=-0.5, blind=True, alike="c"
    ),
    events.UntunedShown(t=3, id="s2", text=ODD_TEXT),
    Answered(t=3, id="s2", text=ODD_TEXT, seconds=6.25, keys=5, counts=True),
    events.Mended(t=4, id="s2", text="x"),
    events.Reviewed(t=5, id="s2", text="y", reviewer="Zoë", seconds=1.0),
    events.Skipped(t=6, id="s1", reason="broken: cut off"),
    events.Undone(t=7, id="s1"),
    events.RoundBegun(t=8, round=1, answers=4, digest="ab"),
    events.RoundDone(t=9, round=1, answers=4, steps=20, loss=0.1, seconds=1.5, end_reason="loss"),
    events.RoundFailed(t=10, round=2, message="m", hint="h", kind="memory"),
    events.Finished(t=11, answers=4, suggestions=0),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_survives_its_line(event: Event) -> None:
    line = event.to_json()
    assert "\n" not in line
    assert parse_event(line.encode()) == event
    assert list(json.loads(line))[:2] == ["t", "event"]


def test_every_kind_is_tested() -> None:
    assert {type(event) for event in EVENTS} == set(events.EVENT_NAMES)
    assert events.EVENT_NAMES[events.RoundBegun] == "round_begun"


def test_a_name_that_is_not_utf8_survives() -> None:
    event = Suggested(t=1, id="s1", image="\udce9.png", sha="", round=0, pick="shuffled", text="x")
    assert parse_event(event.to_json().encode()) == event


ANSWER = json.loads(Answered(t=3, id="s2", text="x", seconds=6.25, keys=5, counts=True).to_json())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"event": "guessed"}, "there is no event 'guessed'"),
        ({"event": ["answered"]}, r"there is no event \['answered'\]"),
        ({"colour": 1}, "answered has the unknown key 'colour'"),
        ({"text": None}, "text of answered is null"),
        ({"keys": True}, "keys of answered is true or false"),
        ({"keys": 1.5}, "keys of answered is a number"),
        ({"seconds": float("nan")}, "seconds of answered is not a finite number"),
        ({"counts": 1}, "counts of answered is a number"),
    ],
)
def test_what_is_wrong_with_a_line_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(LorgnetteError, match=message):
        parse_event(json.dumps({**ANSWER, **changes}))


def test_a_key_that_is_missing_is_named() -> None:
    with pytest.raises(LorgnetteError, match="answered lacks 'text'"):
        parse_event(json.dumps({key: value for key, value in ANSWER.items() if key != "text"}))
    with pytest.raises(LorgnetteError, match="it is a list, not an object"):
        parse_event("[]")
