"""What happened, in words: the only place where events become sentences, for every reader of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from vae_lib.decode.outcome import Outcome
from vae_lib.device import dtype_name
from vae_lib.engine.compute import Operation
from vae_lib.planning import Route
from vae_lib.planning.events import (
    Asked,
    Attempt,
    BelowThreshold,
    Event,
    MaybeOutOfMemory,
    NoScratch,
    OutOfMemory,
    Overflow,
)
from vae_lib.planning.outlook import Outlook
from vae_lib.planning.plan import Plan
from vae_lib.planning.route import Distrusted, DoesNotFit, FreeUnknown, TooSlow, Unavailable
from vae_lib.units import size_text

_UNKNOWN = "this device does not report its free memory"


def time_text(seconds: float) -> str:
    """A few letters: "8.4 ms", "840 ms", "3.4 s", "5 min"."""
    if seconds < 0.00995:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 0.95:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.0f} min"


def expected(outlook: Outlook) -> str:
    """What would be done, or why nothing can be: the line that page, API and command line show."""
    if outlook.chosen is None:
        return str(outlook.problem)
    return planned(outlook.chosen, outlook.events)


def planned(plan: Plan, events: Sequence[Event] | None = None) -> str:
    """The planner's line: "tiled in 48-row bands: needs 300 MB of 2.1 GB free; full needs 4.3 GB"."""
    free = f"({_UNKNOWN})" if plan.free_bytes is None else f"of {size_text(plan.free_bytes)} free"
    where = "of main memory" if plan.route.elsewhere and not plan.is_on_spare_card else free
    text = f"{plan.describe()}: needs {size_text(plan.peak_bytes, up=True)} {where}"
    if plan.host_bytes:
        text += f" and {size_text(plan.host_bytes, up=True)} of main memory"
    events = plan.why if events is None else events
    return "; ".join([text, *(_against(event, briefly=True) for event in events)])


def line(outcome: Outcome) -> str:
    """The command line's line: what failed, and what was done in its place."""
    failed = "".join(f"{event.plan.route.label} failed ({problem(event)}); " for event in outcome.attempts)
    return failed + planned(outcome.plan)


def entry(outcome: Outcome) -> str:
    """The infotext's: "full", or "tiled in 48-row bands; full needs 4.3 GB and 2.1 GB was free"."""
    plan = outcome.plan
    done = plan.route.label if plan.route is Route.FULL and not outcome.attempts else plan.describe()
    if outcome.repaired:
        done += f" in {dtype_name(plan.dtype)}"
    reasons = (_against(event) for event in outcome.events if not isinstance(event, Asked))
    return "; ".join([done, *reasons])


def summary(outcome: Outcome) -> str:
    """For a headline: "in tiles, 3.2 s, 310 MB"; the memory is what the plan took it to need."""
    done = outcome.plan.how + (f" ({dtype_name(outcome.plan.dtype)})" if outcome.repaired else "")
    return f"{done}, {time_text(outcome.seconds)}, {size_text(outcome.plan.peak_bytes)}"


def notice(outcome: Outcome, operation: Operation, width: int, height: int, is_video: bool = False) -> str:
    """For the page and the console, when the picture came by another route than asked for; ``width`` is in pixels."""
    plan = outcome.plan
    done = plan.how
    if outcome.repaired:
        done += f" in {dtype_name(plan.dtype)}"
    because = " and ".join(dict.fromkeys(_clauses(outcome.events, operation)))
    what = f"a video of {width}x{height}" if is_video else f"{width}x{height}"
    text = f"{operation.done} {what} {done}" + (f", because {because}" if because else "")
    text += f" ({time_text(outcome.seconds)})."
    if plan.route.exact:
        picture = "video is" if is_video else "picture is"
        return f"{text} The {picture if operation is Operation.DECODE else 'latents are'} the same."
    return f"{text} TAESD is an approximation."


def problem(event: Attempt) -> str:
    """Why an attempt failed, in a few words."""
    if isinstance(event, OutOfMemory):
        return f"out of memory, although it was predicted to need {size_text(event.plan.peak_bytes, up=True)}"
    if isinstance(event, MaybeOutOfMemory):
        return f"perhaps out of memory: {event.said}"
    if isinstance(event, Overflow):
        return f"NaN or infinite numbers in {dtype_name(event.plan.dtype)}"
    return event.problem.rstrip(".")


def exhausted(attempts: Iterable[Attempt], advice: str) -> str:
    """An error's message after all that was allowed has failed."""
    failed = "; ".join(f"{event.plan.describe()}: {problem(event)}" for event in attempts)
    return f"Every enabled route failed ({failed}). {advice}"


def _against(event: Event, briefly: bool = False, name: Callable[[Route], str] = lambda r: r.label) -> str:
    """What spoke against a route, as a remark in a list."""
    if isinstance(event, (DoesNotFit, FreeUnknown)):
        needs = f"{name(event.route)} needs {size_text(event.need_bytes, up=True)}"
        free = _UNKNOWN if isinstance(event, FreeUnknown) else _free(event)
        return needs if briefly else f"{needs} and {free}"
    if isinstance(event, BelowThreshold):
        return f"{size_text(event.free_bytes)} was free, less than the threshold of {event.threshold_bytes / 1e9:g} GB"
    if isinstance(event, Distrusted):
        return f"{name(event.route)} gave a wrong picture when this device was checked"
    if isinstance(event, TooSlow):
        return f"{name(event.route)} would have taken about {time_text(event.seconds)}"
    if isinstance(event, Unavailable):
        return event.problem.rstrip(".")
    if isinstance(event, Asked):
        return f"{event.route.label} was asked for"
    return f"{event.plan.route.label} failed: {problem(event)}"


def _free(event: DoesNotFit) -> str:
    return f"{size_text(event.free_bytes)} {'may be used' if event.is_limit else 'was free'}"


def _clauses(events: Iterable[Event], operation: Operation) -> Iterable[str]:
    """The reasons of a notice, each to follow "because"."""

    def name(route: Route) -> str:
        return f"the full {operation.value}" if route is Route.FULL else route.caption

    events = list(events)
    ran_out = [name(event.plan.route) for event in events if isinstance(event, OutOfMemory)]
    for event in events:
        if isinstance(event, DoesNotFit):
            yield f"only {_free(event)} and {name(event.route)} needs {size_text(event.need_bytes, up=True)}"
        elif isinstance(event, (FreeUnknown, Distrusted, TooSlow)):
            yield _against(event, name=name)
        elif isinstance(event, BelowThreshold):
            free, least = size_text(event.free_bytes), event.threshold_bytes / 1e9
            yield f"only {free} was free and the threshold is {least:g} GB"
        elif isinstance(event, Unavailable):
            yield f"{_enumerated([*map(name, event.routes)])} could not be used ({event.problem.rstrip('.')})"
        elif isinstance(event, OutOfMemory):
            yield f"{_enumerated(ran_out)} ran out of memory"
        elif isinstance(event, (MaybeOutOfMemory, Overflow, NoScratch)):
            yield f"{name(event.plan.route)} failed ({problem(event)})"


def _enumerated(names: Sequence[str]) -> str:
    """ "a, b and c"; each once."""
    *most, last = dict.fromkeys(names)
    return f"{', '.join(most)} and {last}" if most else last
