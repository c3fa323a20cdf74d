#!/usr/bin/env python3
"""Draws the diagrams of the documentation: `.venv/bin/python scripts/diagrams.py docs/images`.

They are SVG files without scripts, fonts or images from elsewhere. Each brings its own background and follows the
reader's preference for light or dark, so that it can be read on any page. A test compares them with this file.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

_STYLE = """\
text { font: 13px system-ui, sans-serif; fill: #1b2733; text-anchor: middle; dominant-baseline: central }
.small { font-size: 11.5px; fill: #51606f }
.left { text-anchor: start }
.title { font-weight: 600 }
.page { fill: #fbfcfd; stroke: #d5dde5 }
.group { fill: none; stroke: #8c9aa8; stroke-dasharray: 5 4 }
.box { fill: #e8eef5; stroke: #6d8198 }
.good { fill: #dff2e4; stroke: #3f8f5b }
.bad { fill: #fbe3e1; stroke: #b5463c }
.wait { fill: #fdf1d3; stroke: #a97f1a }
.line { stroke: #51606f; fill: none; stroke-width: 1.4 }
.dashed { stroke-dasharray: 5 4 }
.head { fill: #51606f }
@media (prefers-color-scheme: dark) {
  text { fill: #e3e9ef } .small { fill: #a9b6c3 }
  .page { fill: #161b21; stroke: #333d48 } .group { stroke: #75838f }
  .box { fill: #25303c; stroke: #7f93a8 } .good { fill: #173425; stroke: #57b77c }
  .bad { fill: #3d1f1d; stroke: #e07a70 } .wait { fill: #3a2f12; stroke: #d3a840 }
  .line { stroke: #a9b6c3 } .head { fill: #a9b6c3 }
}
"""

_HEAD = """\
<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">\
<path d="M0,0 L8,4 L0,8 z" class="head"/></marker></defs>"""

_LINE = 17


@dataclass
class Drawing:
    """A canvas in pixels, the origin at the top left."""

    width: int
    height: int
    title: str
    _parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, words: str, style: str = "") -> None:
        """Lines around (x, y), centred unless the style says `left`."""
        lines = words.split("\n")
        top = y - (len(lines) - 1) * _LINE / 2
        for number, line in enumerate(lines):
            self._add(f'<text x="{x:g}" y="{top + number * _LINE:g}" class="{style}">{escape(line)}</text>')

    def box(self, x: float, y: float, w: float, h: float, words: str, style: str = "box") -> None:
        self._add(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="6" class="{style}"/>')
        self.text(x + w / 2, y + h / 2, words)

    def group(self, x: float, y: float, w: float, h: float, label: str) -> None:
        self._add(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="8" class="group"/>')
        self.text(x + 12, y + 16, label, "left title")

    def arrow(self, *points: tuple[float, float], label: str = "", at: tuple[float, float] | None = None,
              dashed: bool = False) -> None:  # fmt: skip
        """A line through the points with a head at its end; the label at a place of its own, or over its middle."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        style = "line dashed" if dashed else "line"
        self._add(f'<polyline points="{path}" class="{style}" marker-end="url(#head)"/>')
        if label:
            (x1, y1), (x2, y2) = points[0], points[-1]
            self.text(*(at or ((x1 + x2) / 2, (y1 + y2) / 2 - 10)), label, "small")

    def line(self, *points: tuple[float, float], dashed: bool = False) -> None:
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self._add(f'<polyline points="{path}" class="{"line dashed" if dashed else "line"}"/>')

    def render(self) -> str:
        size = f'viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}"'
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
                "<!-- Drawn by scripts/diagrams.py; change that. -->",
                f"<title>{escape(self.title)}</title>",
                f"<style>\n{_STYLE}</style>",
                _HEAD,
                f'<rect x=".5" y=".5" width="{self.width - 1}" height="{self.height - 1}" rx="10" class="page"/>',
                *self._parts,
                "</svg>\n",
            ]
        )

    def _add(self, part: str) -> None:
        self._parts.append(part)


def isolation() -> Drawing:
    d = Drawing(760, 330, "Whom a runtime serves, under isolation tenant and under isolation user")
    d.group(20, 20, 330, 220, "tenant acme: isolation tenant")
    d.group(410, 20, 330, 220, "tenant bank: isolation user")
    for x, user in ((45, "alice"), (205, "bob")):
        d.box(x, 55, 120, 34, user)
        d.arrow((x + 60, 89), (x + 60, 140))
    d.box(45, 142, 280, 80, "one runtime\n\n", "good")
    for x, name in ((60, "alice's sessions"), (195, "bob's sessions")):
        d.box(x, 180, 115, 30, name)
    for x, user in ((435, "carol"), (595, "dave")):
        d.box(x, 55, 120, 34, user)
        d.arrow((x + 60, 89), (x + 60, 140))
        d.box(x, 142, 120, 80, "a runtime\n\n", "good")
        d.box(x + 8, 180, 104, 30, f"{user}'s sessions")
    d.group(20, 256, 720, 56, "warm: nobody's")
    for x in (200, 345, 490):
        d.box(x, 268, 125, 32, "a runtime", "wait")
    d.text(680, 284, "claimed once,\nnever handed on", "small")
    return d


def lifecycle() -> Drawing:
    d = Drawing(760, 250, "The states of a session: hibernated, resident, running, deleted")
    d.box(40, 70, 150, 60, "hibernated\nin the stores only", "wait")
    d.box(310, 70, 150, 60, "resident\nin a runtime")
    d.box(580, 70, 150, 60, "running\nin a turn", "good")
    d.arrow((190, 85), (308, 85), label="wake: lease, files")
    d.arrow((310, 117), (192, 117), label="idle_timeout,\nroom needed, drain", at=(250, 141))
    d.arrow((460, 85), (578, 85), label="a prompt's turn")
    d.arrow((580, 117), (462, 117), label="the turn has ended", at=(520, 132))
    d.arrow((655, 70), (655, 30), (115, 30), (115, 68), dashed=True,
            label="runtime or node lost: stored up to the last whole event", at=(385, 18))  # fmt: skip
    d.box(310, 185, 150, 46, "deleted\nno trace remains", "bad")
    d.arrow((115, 130), (115, 208), (308, 208), label="ttl since the last use, or DELETE", at=(212, 222))
    return d


def leases() -> Drawing:
    d = Drawing(760, 500, "Two nodes, one session: the lease moves, and the state store refuses the older epoch")
    lanes = {"node A": 95, "coordination": 285, "state store": 475, "node B": 665}
    for name, x in lanes.items():
        d.box(x - 70, 16, 140, 34, name)
        d.line((x, 50), (x, 484), dashed=True)
    a, c, s, b = lanes.values()
    d.arrow((a, 80), (c, 80), label="take the lease")
    d.arrow((c, 108), (a, 108), label="epoch 7", dashed=True)
    d.arrow((a, 138), (s, 138), label="announce 7, read the files", at=(390, 128))
    d.arrow((a, 168), (s, 168), label="write, epoch 7: stored", at=(390, 158))
    d.box(a - 62, 186, 124, 128, "paused\n(no heartbeat)", "bad")
    d.text(c + 66, 222, "ttl passes:\nA counts as dead", "small")
    d.arrow((b, 262), (c, 262), label="take the lease", at=(570, 252))
    d.arrow((c, 290), (b, 290), label="epoch 8", at=(570, 280), dashed=True)
    d.arrow((b, 320), (s, 320), label="announce 8, read the files")
    d.arrow((b, 350), (s, 350), label="write, epoch 8: stored")
    d.box(a - 62, 326, 124, 34, "wakes up", "wait")
    d.arrow((a, 390), (s, 390), label="write, epoch 7", at=(390, 380))
    d.arrow((s, 420), (a, 420), label="refused in that transaction", at=(380, 410), dashed=True)
    d.box(a - 78, 436, 156, 44, "activation closed\nfor good", "bad")
    d.box(s - 82, 440, 164, 36, "history: one line", "good")
    return d


def delivery() -> Drawing:
    d = Drawing(760, 420, "What becomes of a prompt: recorded, sent, answered, or reported")
    d.box(30, 30, 130, 54, "prompt\naccepted")
    d.box(215, 30, 140, 54, "recorded\nin the ledger", "good")
    d.box(410, 30, 130, 54, "sent to\na runtime")
    d.box(595, 30, 135, 54, "answer stored,\nend recorded", "good")
    d.arrow((160, 57), (213, 57))
    d.arrow((355, 57), (408, 57))
    d.arrow((540, 57), (593, 57))
    d.box(595, 140, 135, 46, "completed:\ncaller is told", "good")
    d.arrow((662, 84), (662, 138))
    d.box(395, 140, 160, 46, "runtime lost\nor hung", "bad")
    d.arrow((475, 84), (475, 138))
    d.box(395, 230, 160, 46, "had a tool begun?", "wait")
    d.arrow((475, 186), (475, 228))
    d.box(120, 230, 190, 46, "cut the prompt off\nthe stored history")
    d.arrow((395, 253), (312, 253), label="no, first time")
    d.arrow((215, 230), (215, 163), (380, 163), (380, 100), (430, 100), (430, 86),
            label="sent once more, in another runtime", at=(190, 150))  # fmt: skip
    d.box(395, 330, 160, 46, "interrupted:\ncaller is told", "bad")
    d.arrow((475, 276), (475, 328), label="yes, or second time", at=(540, 302))
    d.box(120, 330, 190, 46, "node lost: another node\nreports it", "bad")
    d.arrow((310, 353), (393, 353))
    d.text(662, 290, "model says no,\nstore away too long:\nfailed, with a code", "small")
    d.text(662, 352, "somebody ends it:\naborted", "small")
    d.text(215, 396, "the same Idempotency-Key: the same outcome, never asked twice", "small")
    return d


def recycling() -> Drawing:
    d = Drawing(760, 270, "A worn runtime is replaced while it is in use")
    d.text(24, 70, "old runtime", "left title")
    d.text(24, 160, "new runtime", "left title")
    d.box(130, 48, 150, 44, "serves", "good")
    d.box(280, 48, 190, 44, "serves, is worn", "wait")
    d.box(470, 48, 180, 44, "retiring: takes no more", "wait")
    d.box(650, 48, 80, 44, "stopped", "bad")
    d.box(280, 138, 100, 44, "starting", "wait")
    d.box(380, 138, 90, 44, "proves itself\nby a turn", "wait")
    d.box(470, 138, 260, 44, "serves", "good")
    d.arrow((500, 92), (500, 136), label="idle sessions,\nat once", at=(545, 115))
    d.arrow((625, 92), (625, 136), label="those in a turn,\nat its end", at=(680, 115))
    d.arrow((130, 220), (730, 220))
    d.text(280, 240, "over a limit of runtime.recycle", "small")
    d.text(470, 240, "the new one is ready", "small")
    d.text(650, 240, "empty, or patience is over", "small")
    for x in (280, 470, 650):
        d.line((x, 214), (x, 226))
    return d


def placement() -> Drawing:
    d = Drawing(760, 466, "Where a session is loaded: which node, which runtime")
    d.box(30, 30, 160, 46, "a prompt, at any node")
    d.box(30, 115, 160, 52, "does another node\nhold its lease?", "wait")
    d.arrow((110, 76), (110, 113))
    d.box(270, 115, 200, 52, "passed on to that node,\nover the same protocol", "good")
    d.arrow((190, 141), (268, 141), label="yes")
    d.box(30, 205, 160, 46, "take the lease")
    d.arrow((110, 167), (110, 203), label="no", at=(125, 185))
    d.box(30, 290, 160, 52, "a place in a runtime\nof this tenant or user", "wait")
    d.arrow((110, 251), (110, 288))
    steps = (
        ("one that has room:\nruntime.placement", "good"),
        ("claim a warm one", "good"),
        ("start one, up to\nmax_runtimes", "good"),
        ("hibernate the least\nrecently used", "good"),
        ("wait, fairly; then\ncapacity", "bad"),
    )
    for number, (words, style) in enumerate(steps):
        x = 24 + number * 144
        d.box(x, 390, 136, 56, words, style)
        if number:
            d.arrow((x - 8, 418), (x - 1, 418))
    d.arrow((110, 342), (110, 388))
    d.text(420, 364, "the first that works; no runtime ever serves two tenants", "small")
    return d


DRAWINGS = (isolation, lifecycle, leases, delivery, recycling, placement)


def main(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for draw in DRAWINGS:
        (directory / f"{draw.__name__}.svg").write_text(draw().render(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
