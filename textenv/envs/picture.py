"""`render_mode="rgb_array"`: text as a picture, drawn with Pillow in a font of matplotlib.

The size is constant, as videos and batches of frames need it. If a text is too long, its end is shown.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS, LINES = 64, 16
HEIGHT, WIDTH = 256, 512
"""Size of a frame in pixels; video codecs need even numbers."""

PAPER, HEADER, PROMPT, RESPONSE = (255, 255, 255), (130, 130, 130), (90, 90, 90), (0, 0, 160)
REPLY = (0, 110, 60)
_LINE_HEIGHT = HEIGHT // LINES
_FONT_SIZE, _MARGIN = 13, 5
Line = list[tuple[str, tuple[int, int, int]]]
"""Pieces of a line, each with its colour."""


def draw(
    header: str, prompt: str, response: str, footer: str, turns: Sequence[tuple[str, bool]] = ()
) -> np.ndarray:
    """Draw one row.

    Args:
        header: the first line, with the episode id.
        prompt: printable text, in grey.
        response: printable text, in blue, directly after the prompt.
        footer: reward terms, on the last lines.
        turns: printable texts with their roles, and whether each is the policy's (in blue, else in green);
            each begins a line.

    Returns:
        (HEIGHT, WIDTH, 3) uint8.
    """
    image_module, draw_module, font, advance = _tools()
    image = image_module.new("RGB", (WIDTH, HEIGHT), PAPER)
    pen = draw_module.Draw(image)
    for number, line in enumerate(layout(header, prompt, response, footer, turns)):
        column = 0
        for piece, colour in line:
            place = (_MARGIN + column * advance, number * _LINE_HEIGHT)
            pen.text(place, piece, fill=colour, font=font)
            column += len(piece)
    return np.asarray(image, dtype=np.uint8).copy()


def layout(
    header: str, prompt: str, response: str, footer: str, turns: Sequence[tuple[str, bool]] = ()
) -> list[Line]:
    """At most LINES lines of at most COLUMNS characters: header, the end of the text, at most 4 of footer.

    >>> layout("[0]", "ab", "c", "")[0], layout("[0]", "ab", "c", "")[1]
    ([('[0]', (130, 130, 130))], [('ab', (90, 90, 90)), ('c', (0, 0, 160))])
    """
    below = wrap([(footer, HEADER)])[:4] if footer else []
    body, room = wrap([(prompt, PROMPT), (response, RESPONSE)]), LINES - 1 - len(below)
    for text, own in turns:
        body += wrap([(text, RESPONSE if own else REPLY)])
    if len(body) > room:
        body = [[("...", HEADER)], *body[len(body) - room + 1 :]]
    return [[(header[:COLUMNS], HEADER)], *body, *below]


def wrap(pieces: Sequence[tuple[str, tuple[int, int, int]]]) -> list[Line]:
    """Break coloured text into lines of COLUMNS characters, also inside words."""
    lines: list[Line] = [[]]
    room = COLUMNS
    for text, colour in pieces:
        while text:
            if not room:
                lines.append([])
                room = COLUMNS
            lines[-1].append((text[:room], colour))
            room, text = room - len(text[:room]), text[room:]
    return lines


@functools.cache
def _tools() -> tuple[Any, Any, Any, float]:
    """Pillow's modules, the font and the width of a character."""
    import matplotlib  # late: environments that draw nothing load neither library
    from PIL import Image, ImageDraw, ImageFont

    # Pillow's own font has Latin letters only; this one comes with matplotlib on every system.
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf"
    font = ImageFont.truetype(str(path), _FONT_SIZE)
    return Image, ImageDraw, font, float(font.getlength("x"))
