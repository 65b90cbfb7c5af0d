"""Small pieces of HTML. Whatever comes from files, the hub or the user is escaped."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from html import escape

# "vg" thrice: stronger than what gradio and the WebUI say of tables and text inside a gr.HTML.
CSS = """
.vg-hidden, .form:has(> .vg-hidden) { display: none !important; }
#vg_tabs, .vg { --body-text-color-subdued: var(--neutral-500); --block-info-text-color: var(--neutral-500); }
.dark #vg_tabs, .dark .vg { --body-text-color-subdued: var(--neutral-400);
  --block-info-text-color: var(--neutral-400); }
.vg { color: var(--body-text-color); font-size: var(--text-sm); line-height: 1.4; container-type: inline-size; }
.vg.vg.vg p { margin: .25em 0; }
.vg.vg.vg a { color: var(--link-text-color); text-decoration: underline; }
.vg.vg.vg .vg-dim { color: var(--body-text-color-subdued); }
.vg.vg.vg .vg-scroll { overflow-x: auto; border: 1px solid var(--border-color-primary); border-radius: var(--radius-lg);
  background: var(--background-fill-primary); }
.vg.vg.vg table { width: 100%; border-collapse: collapse; margin: 0; border: 0; }
.vg.vg.vg thead, .vg.vg.vg tbody, .vg.vg.vg tr { border: 0; }
.vg.vg.vg th, .vg.vg.vg td { padding: 5px 10px; text-align: left; vertical-align: top; border: 0; color: inherit;
  border-bottom: 1px solid var(--border-color-primary); }
.vg.vg.vg th:first-child { min-width: 12em; }
.vg.vg.vg h4 { margin: 0 0 .3em; overflow-wrap: anywhere; }
.vg.vg.vg tr:last-child td { border-bottom: 0; }
.vg.vg.vg th { background: var(--background-fill-secondary); color: var(--body-text-color-subdued); font-weight: 600;
  white-space: nowrap; }
.vg.vg.vg tbody tr:hover { background: var(--background-fill-secondary); }
.vg.vg.vg tr.vg-chosen { box-shadow: inset 3px 0 var(--color-accent); background: var(--background-fill-secondary); }
.vg.vg.vg .vg-num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
#vg_check_report textarea { font-family: var(--font-mono); white-space: pre; overflow-x: auto; }
.vg.vg.vg .vg-mono { font-family: var(--font-mono); white-space: nowrap; }
.vg.vg.vg .vg-link { color: var(--body-text-color); font-weight: 600; text-align: left;
  overflow-wrap: anywhere; cursor: pointer; background: none; border: 0; padding: 0; }
.vg.vg.vg .vg-link:hover { text-decoration: underline; }
.vg.vg.vg .vg-chip { display: inline-block; padding: 0 7px; border-radius: 99px; white-space: nowrap; font-size: .85em;
  border: 1px solid var(--border-color-primary); color: var(--body-text-color-subdued); }
.vg.vg.vg .vg-chip.vg-on { border-color: var(--color-accent); color: var(--body-text-color); }
.vg.vg.vg .vg-note { margin-bottom: 6px; }
.vg.vg.vg .vg-note { padding: 7px 11px; border-radius: var(--radius-lg); border: 1px solid var(--border-color-primary);
  border-left: 3px solid var(--color-accent); background: var(--background-fill-secondary); }
.vg.vg.vg .vg-note.vg-bad { border-left-color: #dc2626; }
.vg.vg.vg .vg-note.vg-warn { border-left-color: #d97706; }
.vg.vg.vg .vg-bad-text { color: #dc2626; }
.dark .vg.vg.vg .vg-bad-text { color: #f87171; }
.vg.vg.vg .vg-facts { display: grid; grid-template-columns: max-content 1fr; gap: 2px 14px; margin: 6px 0; }
.vg.vg.vg .vg-facts dt { color: var(--body-text-color-subdued); }
.vg.vg.vg .vg-facts dd { margin: 0; overflow-wrap: anywhere; }
.vg.vg.vg .vg-bar { display: flex; height: 22px; border-radius: var(--radius-lg); overflow: hidden; margin: 6px 0;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-primary); }
.vg.vg.vg .vg-bar > span { display: block; height: 100%; }
.vg.vg.vg .vg-key { display: flex; flex-wrap: wrap; gap: 3px 16px; }
.vg.vg.vg .vg-key i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 5px; }
.vg.vg.vg .vg-used { background: var(--neutral-400); }
.vg.vg.vg .vg-reserve { background: repeating-linear-gradient(45deg, var(--neutral-400) 0 3px, transparent 3px 7px); }
.vg.vg.vg .vg-need { background: var(--color-accent); }
.vg.vg.vg .vg-over { background: #dc2626; }
.vg.vg.vg .vg-free { background: var(--background-fill-primary);
  box-shadow: inset 0 0 0 1px var(--border-color-primary); }
.vg.vg.vg .vg-progress { height: 6px; border-radius: 99px; background: var(--border-color-primary); overflow: hidden;
  margin: 5px 0; }
.vg.vg.vg .vg-progress > span { display: block; height: 100%; background: var(--color-accent); }
.vg.vg.vg .vg-progress > span.vg-unsure { width: 30%; opacity: .5; }
.vg.vg.vg .vg-swatch { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 7px; }
.vg.vg.vg .vg-plot { width: 100%; height: auto; display: block; font-size: 12px; }
.vg.vg.vg .vg-phone { display: none; }
.vg.vg.vg .vg-plot text { fill: var(--body-text-color-subdued); }
.vg.vg.vg .vg-plot .vg-grid { stroke: var(--border-color-primary); }
.vg.vg.vg .vg-plot .vg-line { fill: none; stroke-width: 2; }
.vg.vg.vg .vg-plot .vg-limit { stroke: var(--body-text-color); stroke-width: 1.5; stroke-dasharray: 5 4; }
.vg.vg.vg .vg-plot .vg-strong { fill: var(--body-text-color); paint-order: stroke; stroke-width: 4px;
  stroke: var(--background-fill-primary); }
@container (max-width: 1000px) { .vg.vg.vg .vg-plot { font-size: 17px; } }
@container (min-width: 861px) {
  #vg_unfinished_table .vg.vg.vg .vg-scroll { max-height: 60vh; overflow-y: auto; }
  #vg_unfinished_table .vg.vg.vg thead th { position: sticky; top: 0; background: var(--background-fill-primary); }
}
@container (max-width: 720px) {
  .vg.vg.vg .vg-desk { display: none; }
  .vg.vg.vg .vg-phone { display: block; font-size: 14px; }
}
.dark #vg_tabs input.subdued { color: var(--neutral-300); }
#vg_tabs .secondary-wrap input { text-overflow: ellipsis; }
#vg_tabs .secondary-wrap input[role=listbox] { padding-right: 1.5em; }
#vg_gallery .grid-wrap { max-height: none; }
#vg_gallery .grid-container { grid-template-columns: repeat(auto-fill, minmax(max(150px, 30%), 1fr)); }
#vg_gallery .caption-label { max-width: 100%; white-space: normal; overflow-wrap: anywhere; text-align: right; }
"""

# Each row of a table as a card: where it is too narrow for a table of few columns, or (``.vg-broad``) of many.
_CARDS = """
@container (max-width: WIDTHpx) {
  TABLE table, TABLE tbody { display: block; }
  TABLE thead { display: none; }
  TABLE tbody tr { display: grid; grid-template-columns: 1fr 1fr; column-gap: 10px; padding: 7px 10px;
    border-bottom: 1px solid var(--border-color-primary); }
  TABLE tbody tr:last-child { border-bottom: 0; }
  TABLE td, TABLE td.vg-num { border: 0; padding: 1px 0; text-align: left; white-space: normal; min-width: 0; }
  TABLE td:first-child, TABLE td.vg-wide { grid-column: 1 / -1; }
  TABLE td:empty { display: none; }
  TABLE td[data-label]:not(:first-child):not(.vg-wide) { display: flex; flex-wrap: wrap; column-gap: .4em; }
  TABLE td[data-label]:not(:first-child):not(.vg-wide)::before { content: attr(data-label);
    color: var(--body-text-color-subdued); }
}
"""
CSS += "".join(
    _CARDS.replace("WIDTH", str(width)).replace("TABLE", f".vg.vg.vg {table}")
    for table, width in ((".vg-scroll", 640), (".vg-broad", 860))
)

Cell = tuple[str, str]  # HTML, class


def page(html: str) -> str:
    """A piece of our own look."""
    return f'<div class="vg">{html}</div>'


def note(text: str, kind: str = "") -> str:
    """A framed sentence; ``kind`` is "bad", "warn" or nothing. An empty text gives nothing."""
    return page(f'<div class="vg-note vg-{kind}" role="status">{escape(text)}</div>') if text else ""


def sentence(text: str) -> str:
    """With its first letter large; of a route's label, for example."""
    return text[:1].upper() + text[1:]


def chip(text: str, on: bool = False) -> str:
    return f'<span class="vg-chip{" vg-on" if on else ""}">{escape(text)}</span>'


def breakable(name: str) -> str:
    """A file's name that may be broken between its words."""
    return re.sub(r"(?<=[-_./])(?=\w)", "<wbr>", escape(name))


def pick_button(options_id: str, index: int, text: str, shown_in: str = "") -> str:
    """A button that picks a hidden gr.Radio's or gr.CheckboxGroup's option, which is how a table's row is chosen.

    ``shown_in`` is what shows the choice: on a narrow screen the page goes there, once it is filled.
    """
    script = f"document.querySelectorAll('#{options_id} input')[{index}].click()"
    if shown_in:
        script += f"; setTimeout(() => document.getElementById('{shown_in}').scrollIntoView({{block: 'nearest'}}), 500)"
    return f'<button type="button" class="vg-link" onclick="{script}">{breakable(text)}</button>'


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    chosen: Collection[int] = (),
    empty: str = "",
    *,
    is_broad: bool = False,
) -> str:
    """A table; on a narrow screen each row becomes a card, its cells labelled by ``head``.

    The last cell of a row that has too few reaches to the end; ``is_broad`` tables become cards sooner.
    """
    body = []
    kinds = [""] * len(head)
    for number, row in enumerate(rows):
        spanned = len(head) - len(row) + 1
        if spanned == 1:
            kinds = max(kinds, [kind for _, kind in row], key=lambda found: found.count("vg-num"))
        span = f' colspan="{spanned}"' if spanned > 1 else ""
        cells = "".join(
            f'<td class="{kind}" data-label="{escape(label)}"{span if place == len(row) else ""}>{html}</td>'
            for place, (label, (html, kind)) in enumerate(zip(head, row, strict=False), 1)
        )
        body.append(f"<tr{' class=vg-chosen' if number in chosen else ''}>{cells}</tr>")
    if not body:
        return page(f'<p class="vg-dim">{escape(empty)}</p>')
    heads = "".join(
        f'<th class="{"vg-num" if kind == "vg-num" else ""}">{escape(label)}</th>'
        for label, kind in zip(head, kinds, strict=True)
    )
    scroll = "vg-scroll vg-broad" if is_broad else "vg-scroll"
    return page(
        f'<div class="{scroll}"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values, the values as text."""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs)
    return f'<dl class="vg-facts">{items}</dl>'


def progress(fraction: float | None) -> str:
    """A bar, of unknown length for None."""
    if fraction is None:
        return '<div class="vg-progress"><span class="vg-unsure"></span></div>'
    return f'<div class="vg-progress"><span style="width:{100 * fraction:.1f}%"></span></div>'
